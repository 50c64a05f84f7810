"""The detector of docs/detection.md, as it stands there."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[3] / "docs" / "detection.md"


def test_a_detector_of_your_own_in_twenty_lines(capsys):
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    lines = [line for line in code.splitlines() if line and not line.startswith(("import", "from"))]
    assert len(lines) <= 20
    exec(compile(code, str(PAGE), "exec"), {})
    printed = capsys.readouterr().out.splitlines()[-2:]
    assert all(line.startswith("{'AP': ") and "'AP50': " in line for line in printed)
