"""``python -m regkit`` is ``regkit``."""

from regkit.cli import app

app(prog_name="regkit")
