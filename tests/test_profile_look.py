"""``autoplan profile list``, ``show``, ``diff`` and ``schema``, and the pages they write."""

from __future__ import annotations

import json
import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from msgspec.structs import replace

from autoplan.cli.main import main
from autoplan.errors import ProfileError
from autoplan.hardware import Cluster, parse_profile, profile_from_dict, profile_text, write_profile
from autoplan.hardware.profile_diff import diff_profiles
from autoplan.hardware.profile_path import shipped_dir
from autoplan.hardware.schema import profile_schema
from autoplan.report.profile_html import profile_html
from autoplan.report.profile_text import profile_text as shown

GOLDEN = Path(__file__).parent / "golden"
SMALL = GOLDEN / "profile_small.toml"
SCHEMA = jsonschema.Draft202012Validator(profile_schema())


def other() -> Cluster:
    """The small profile with a faster card, a slower network and another curve."""
    small = Cluster.load(SMALL)
    device = replace(small.device, peak_flops={"bfloat16": 80e12, "float32": 10.2e12}, tdp_w=None)
    pcie = replace(small.levels[0], curves=())
    network = replace(small.levels[1], bandwidth_bytes_per_s=3e9)
    return replace(small, name="other", device=device, levels=(pcie, network))


def golden(name: str, text: str) -> None:
    """``text`` is what tests/golden holds."""
    path = GOLDEN / name
    assert path.read_text(encoding="utf-8").rstrip("\n") == text.rstrip("\n"), f"see {path}"


# --- show --------------------------------------------------------------------------------------


def test_show_prints_every_figure_with_its_source_and_every_curve(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["profile", "show", str(SMALL)]) == 0
    golden("profile_show.txt", capsys.readouterr().out)


def test_show_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "show", "h100-sxm", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["world_size"], data["profile"]["device"]["peak_flops"]["fp8"]) == (8, 1978.9e12)


@pytest.mark.parametrize("name", sorted(path.stem for path in shipped_dir().glob("*.toml")))
def test_every_profile_can_be_shown(name: str) -> None:
    text = shown(Cluster.load(name))
    assert "nan" not in text and "inf " not in text


class Page(HTMLParser):
    """Tags that were opened and not closed, and addresses that the page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.circles = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.circles += tag == "circle"
        if tag not in ("meta", "br"):
            self.open.append(tag)
        self.fetched += [str(value) for key, value in attrs if key in ("src", "href", "xlink:href")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.circles += tag == "circle"
        self.fetched += [str(value) for key, value in attrs if key in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_fetches_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "small.html"
    assert main(["profile", "show", str(SMALL), "--html", str(path)]) == 0
    assert capsys.readouterr().out == f"written to {path}\n"
    text, page = path.read_text(), Page()
    page.feed(text)
    assert page.open == [] and page.fetched == []
    assert page.circles > 50 and "http" not in text
    assert "device.peak_flops.bfloat16" in text and "out of memory" in text


def test_the_page_escapes_what_a_profile_says() -> None:
    small = Cluster.load(SMALL)
    text = profile_html(replace(small, description="<script>alert(1)</script>"))
    assert "<script>" not in text and "&lt;script&gt;" in text


def test_a_page_that_cannot_be_written_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", "show", "h100-sxm", "--html", str(tmp_path)]) == 2
    assert "--html" in capsys.readouterr().err


# --- list --------------------------------------------------------------------------------------


def test_list_tells_device_shape_and_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "profiles"
    monkeypatch.setenv("AUTOPLAN_CACHE", str(tmp_path))
    write_profile(Cluster.load(SMALL), cache / "small.toml")
    (cache / "broken.toml").write_text("format = 1")
    (cache / "two.toml").write_text(
        'format = 2\nname = "two"\npart = [{ profile = "a100-80-sxm", nodes = 2 }, { profile = "h100-sxm", nodes = 1 }]\n'
    )
    assert main(["profile", "list"]) == 0
    text = capsys.readouterr().out
    entry = re.search(r"^small\n(.*\n.*)\n", text, re.MULTILINE)
    assert entry is not None
    assert entry[1] == (
        "  Small GPU: 2 by pcie, 1 x 12.5 GB/s network\n"
        "  9 measured, 8 datasheet, 5 assumed, 2 calibrated, 1 published"
    )
    assert "broken\n  cannot be read" in text
    assert "two\n  NVIDIA A100-SXM4-80GB + NVIDIA H100 80GB HBM3: 8 by nvlink, " in text
    assert main(["profile", "list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["h100-sxm"]["description"].startswith("DGX H100")
    assert main(["profile", "show", "two"]) == 0
    assert capsys.readouterr().out.startswith("two: 24 devices of 2 parts")


# --- diff --------------------------------------------------------------------------------------


def test_diff_tells_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "other.toml"
    write_profile(other(), path)
    assert main(["profile", "diff", str(SMALL), str(path)]) == 0
    golden("profile_diff.txt", capsys.readouterr().out)
    assert main(["profile", "diff", str(SMALL), str(path), "--threshold", "1%", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert "device.peak_flops.float32" in {d["path"] for d in data["figures"]}
    assert data["compared_points"] == 5


def test_a_profile_differs_in_nothing_from_itself() -> None:
    small = Cluster.load(SMALL)
    found = diff_profiles(small, small, 0.0)
    assert (found.figures, found.points, found.compared_points) == ((), (), 5)


@pytest.mark.parametrize("value", ["x", "-1", "nan", "1e999"])
def test_a_threshold_that_is_none_is_one_line(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "diff", "h100-sxm", "h100-sxm", f"--threshold={value}"]) == 2
    assert "--threshold: got" in capsys.readouterr().err


# --- schema ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*sorted(shipped_dir().glob("*.toml")), SMALL], ids=lambda path: path.stem)
def test_every_shipped_profile_fulfils_the_schema(path: Path) -> None:
    SCHEMA.validate(tomllib.loads(path.read_text()))
    if "extends" in path.read_text():  # and so does what it comes to
        SCHEMA.validate(tomllib.loads(profile_text(Cluster.load(path.stem))))


def test_the_schema_is_one_and_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    jsonschema.Draft202012Validator.check_schema(profile_schema())
    assert main(["profile", "schema"]) == 0
    assert json.loads(capsys.readouterr().out) == profile_schema()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("level.0.bandwidth_bytes_per_s", 20),
        ("level.0.curves.0.collective", "broadcast"),
        ("device.peak_flops", {"fp4": 1e15}),
        ("device.colour", "green"),
        ("device.gemm.0.points.0", [1024, 1024, 1024]),
        ("format", 1),
    ],
)
def test_the_schema_refuses_what_loading_refuses(path: str, value: Any) -> None:
    data = tomllib.loads(SMALL.read_text())
    place: Any = data
    *parents, last = path.split(".")
    for name in parents:
        place = place[int(name)] if isinstance(place, list) else place[name]
    place[int(last) if isinstance(place, list) else last] = value
    assert not SCHEMA.is_valid(data)
    with pytest.raises(ProfileError, match=r"^small\.toml: "):
        profile_from_dict(data, "small.toml")


def test_what_is_written_fulfils_the_schema() -> None:
    small = Cluster.load(SMALL)
    text = profile_text(small)
    SCHEMA.validate(tomllib.loads(text))
    assert parse_profile(text, "x.toml") == small
