"""index.html of a run: one page that opens from the disk, made only of the files in the run directory.

`collect.py` reads the run's files into `PageData`; `page.py` makes HTML of it with the styles and scripts in `assets/`.
"""

from pytest_llmprof.report.page.page import PAGE, write_page

__all__ = ["PAGE", "write_page"]
