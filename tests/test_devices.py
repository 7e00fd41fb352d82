"""What another device than the CPU would refuse, told without having one."""

from pathlib import Path

import salve_plugin


def test_float64_is_asked_of_the_cpu_alone() -> None:
    package = Path(salve_plugin.__file__).parent
    # Apple's GPUs have no float64: what is converted there, and brought over then, raises.
    wrong = [path for path in package.rglob("*.py") if ".double().cpu()" in path.read_text()]
    assert wrong == []
