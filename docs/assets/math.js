// Draws the formulas that pymdownx.arithmatex marks, as \(...\) in a line and \[...\] by themselves.
for (const formula of document.querySelectorAll(".arithmatex")) {
  const source = formula.textContent.trim();
  katex.render(source.slice(2, -2), formula, { displayMode: source.startsWith("\\[") });
}
