"""Where models come from: built-in sizes, Hugging Face configs, and the user's own factories.

Importing this package does not import torch.
"""

from autoplan.graph.sources.builtin import builtin_names
from autoplan.graph.sources.load import load_source
from autoplan.graph.sources.source import ModelSource

__all__ = ["ModelSource", "builtin_names", "load_source"]
