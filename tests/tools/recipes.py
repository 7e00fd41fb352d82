"""Recipes of edits, as the edit bench of an atlas writes them."""

import json

import safetensors.torch

import salve_plugin as salve


def recipe(edit: salve.Edit, **notes: str) -> bytes:
    """Return the file, written by the safetensors library; `notes` instead of its metadata."""
    notes = notes or {"recipe": json.dumps(edit.to_json())}
    tensors = {name: tensor.contiguous() for name, tensor in edit.tensors.items()}
    data: bytes = safetensors.torch.save(tensors, metadata=notes)
    return data
