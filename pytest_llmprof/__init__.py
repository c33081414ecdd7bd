"""pytest-llmprof: benchmark, profile and check document-OCR and multimodal models from pytest.

Importing this package is cheap: torch, transformers and nvtx are imported only where a test uses them.
"""

__version__ = "0.1.0"
__all__ = ["__version__"]
