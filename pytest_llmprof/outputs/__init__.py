"""What a test leaves for people and programs: predictions.jsonl and the gallery."""

from pytest_llmprof.outputs.gallery import check_gallery
from pytest_llmprof.outputs.options import output_options
from pytest_llmprof.outputs.writer import Outputs, check_writable

__all__ = ["Outputs", "check_gallery", "check_writable", "output_options"]
