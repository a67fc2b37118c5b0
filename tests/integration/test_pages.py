"""The HTML pages in a real headless Chromium: they render, tables sort, nothing leaves the file.

Structure, not pixels: what stands where, how wide it is, what a reader without eyes is told.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgekit import cli
from edgekit.pipeline import report as stage
from tests.browser import Page, browser, chromium
from tests.integration.conftest import Exported, cache_in

WIDTHS = {"desk": 1200, "tablet": 768, "phone": 360}


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    program = chromium()
    if program is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with browser(program) as found:
        yield found


@pytest.fixture(scope="module")
def cells_page(cells_bundle: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pages") / "cells.html"
    with cache_in(cells_bundle.cache):
        stage.write(cells_bundle.bundle, out)
    return out


@pytest.fixture(scope="module")
def resnet_page(resnet_bundle: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pages") / "resnet.html"
    with cache_in(resnet_bundle.cache):
        stage.write(resnet_bundle.bundle, out)
    return out


def column(page: Page, table: str, index: int) -> list[str]:
    return page.text(f"#{table} tbody tr:not(.group) > :nth-child({index})")


def press(page: Page, table: str, index: int) -> str:
    """Press a column's title; returns its aria-sort."""
    head = f"document.querySelector('#{table} thead th:nth-child({index})')"
    page.run(f"{head}.querySelector('button').click()")
    return str(page.run(f"{head}.getAttribute('aria-sort')"))


def each(page: Page, selector: str, script: str) -> list[Any]:
    """The value of a JavaScript expression of `e` for every element that `selector` finds."""
    found: list[Any] = page.run(
        f"[...document.querySelectorAll({json.dumps(selector)})].map((e) => {{ return {script}; }})"
    )
    return found


def numbers(page: Page, table: str, index: int) -> list[float]:
    script = (
        f"[...document.querySelectorAll('#{table} tbody tr:not(.group) > :nth-child({index})')]"
        ".map((cell) => cell.dataset.v).filter((v) => v !== '').map(Number)"
    )
    found: list[float] = page.run(script)
    return found


def manifest(bundle: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((bundle / "manifest.json").read_text())
    return found


def test_every_part_is_there_and_nothing_complains(
    page: Page, cells_page: Path, cells_bundle: Exported
) -> None:
    assert cells_page.stat().st_size < 5_000_000
    page.open(cells_page)
    assert page.problems == []
    assert page.text("h2") == [
        "Stages", "Latency", "Accuracy", "Layers", "Activations and their ranges", "On images",
        "Sizes", "Provenance",
    ]  # fmt: skip
    facts = manifest(cells_bundle.bundle)
    assert page.text(".verdict") == [facts["verdict"]]
    # the verdict is above everything else
    tops = page.run(
        "['.verdict', '.tiles', 'nav', '#stages', '#latency', '#provenance']"
        ".map((s) => document.querySelector(s).getBoundingClientRect().top)"
    )
    assert tops == sorted(tops)
    assert page.text("#stages-table tbody th") == [step["name"] for step in facts["chain"]]
    assert page.text("#latency-table tbody th") == ["FP32", "INT8"]
    assert numbers(page, "latency-table", 2) == [
        facts["latency"]["float"]["p50_ms"],
        facts["latency"]["int8"]["p50_ms"],
    ]
    assert page.text("#classes-table tbody th")
    shown = dict(
        zip(page.text("#accuracy-table tbody th"), numbers(page, "accuracy-table", 3), strict=True)
    )
    assert shown["mAP50-95"] == pytest.approx(facts["accuracy"]["int8"], abs=1e-6)
    assert facts["checkpoint"]["sha256"] in page.text("dl.facts dd")
    every = {
        line.split()[0] for line in (cells_bundle.bundle / "SHA256SUMS").read_text().splitlines()
    }
    assert len(column(page, "files-table", 1)) == len(every) - 1  # all but the manifest itself


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", list(WIDTHS))
def test_it_fits_every_screen_and_can_be_read(
    page: Page, cells_page: Path, size: str, dark: bool
) -> None:
    page.open(cells_page, width=WIDTHS[size], dark=dark)
    assert page.problems == []
    assert page.run("document.documentElement.scrollWidth") <= WIDTHS[size], "no sideways scrolling"
    smallest = page.run(
        "Math.min(...[...document.querySelectorAll('p, td, th, dd, dt, li, span, a')]"
        ".filter((e) => e.innerText && e.offsetParent)"
        ".map((e) => parseFloat(getComputedStyle(e).fontSize)))"
    )
    assert smallest >= 11.5
    assert page.run(CONTRAST) == [], "WCAG 2.2 AA: 4.5 to 1"


# text whose contrast with the ground behind it is below 4.5; grounds are plain colours
CONTRAST = """
(() => {
  const lum = (c) => c.slice(0, 3).map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((s, v, i) => s + v * [0.2126, 0.7152, 0.0722][i], 0);
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const ground = (e) => {
    for (let n = e; n; n = n.parentElement) {
      const c = parse(getComputedStyle(n).backgroundColor);
      if (c.length === 3 || c[3] === 1) return c;
    }
    return [255, 255, 255];
  };
  const seen = [...document.querySelectorAll('body *')].filter((e) => !e.closest('svg, .skip')
      && [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()) && e.offsetParent);
  if (seen.length < 30) return ['hardly any text was found'];
  return seen.map((e) => {
    const a = lum(parse(getComputedStyle(e).color)), b = lum(ground(e));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const what = `${e.tagName} ${e.className}: ${e.innerText.slice(0, 30)}`;
    return ratio < 4.5 ? `${what} ${ratio.toFixed(2)}` : null;
  }).filter((line) => line);
})()
"""


def test_tables_sort_both_ways(page: Page, cells_page: Path) -> None:
    page.open(cells_page)
    order = column(page, "layers-table", 1)
    assert order == sorted(order, key=int), "in running order at first"

    assert press(page, "layers-table", 4) == "descending"
    times = numbers(page, "layers-table", 4)
    assert len(times) > 20 and times == sorted(times, reverse=True)
    assert press(page, "layers-table", 4) == "ascending"
    assert numbers(page, "layers-table", 4) == sorted(times)

    assert press(page, "layers-table", 2) == "ascending"
    names = column(page, "layers-table", 2)
    assert names == page.run(f"{json.dumps(names)}.sort((a, b) => a.localeCompare(b))")
    sorts = page.run(
        "[...document.querySelectorAll('#layers-table th[aria-sort]')].map((h) => h.ariaSort)"
    )
    assert sorts.count("none") == len(sorts) - 1, "one column at a time"
    assert sorted(column(page, "layers-table", 1), key=int) == order, "no row is lost"
    assert page.problems == []


def test_cells_without_a_value_sort_last(page: Page, cells_page: Path) -> None:
    page.open(cells_page)
    for _ in range(2):
        press(page, "layers-table", 6)
        blanks = [not value for value in page.run(
            "[...document.querySelectorAll('#layers-table tbody tr > :nth-child(6)')].map((c) => c.dataset.v)"
        )]  # fmt: skip
        assert any(blanks) and blanks == sorted(blanks)


def test_titles_can_be_reached_and_pressed_by_keyboard(page: Page, cells_page: Path) -> None:
    page.open(cells_page)
    page.run("document.querySelector('#files-table th:nth-child(2) button').focus()")
    page.call(
        "Input.dispatchKeyEvent",
        type="keyDown",
        key="Enter",
        code="Enter",
        text="\r",
        windowsVirtualKeyCode=13,
    )
    page.call(
        "Input.dispatchKeyEvent", type="keyUp", key="Enter", code="Enter", windowsVirtualKeyCode=13
    )
    sizes = numbers(page, "files-table", 2)
    assert sizes == sorted(sizes, reverse=True)
    assert (
        page.run("document.querySelector('#files-table th:nth-child(2)').ariaSort") == "descending"
    )


def test_what_screen_readers_are_told(page: Page, cells_page: Path) -> None:
    page.open(cells_page)
    assert page.run("document.documentElement.lang") == "en"
    assert page.run("document.title").endswith("edgekit report")
    assert len(page.text("h1")) == 1
    assert all(each(page, "svg[role=img]", "e.ariaLabel"))
    assert all(each(page, "table", "e.caption && e.caption.innerText"))
    assert set(each(page, "thead th", "e.scope")) == {"col"}
    titles = "document.getElementById(e.getAttribute('aria-labelledby')) !== null"
    assert all(each(page, "section", titles))
    anchors = each(page, "nav a, a.skip", "e.getAttribute('href')")
    assert len(anchors) >= 8
    assert all(page.run(f"document.querySelector({json.dumps(a)}) !== null") for a in anchors)
    ids = each(page, "[id]", "e.id")
    assert len(ids) == len(set(ids))


def test_samples_show_float_and_int8_side_by_side(page: Page, cells_page: Path) -> None:
    page.open(cells_page)
    captions = page.text("#samples figcaption b")
    assert captions == [
        f"{kind}, golden sample {number}" for number in (0, 1) for kind in ("FP32", "INT8")
    ]
    boxes = each(page, "#samples svg.shot", "e.querySelectorAll('rect.box').length")
    told = [re.match(r"(\d+) objects?", text) for text in page.text("#samples figcaption span")]
    assert boxes == [int(match[1]) for match in told if match]
    assert min(boxes) > 3 and abs(boxes[0] - boxes[1]) <= 6
    sides = each(page, "#samples svg.shot", RECTANGLE)[:2]
    (left, top, width, height), (other_left, other_top, *_) = sides
    assert top == other_top and other_left > left + 0.9 * width and height > 100
    assert all(each(page, "#samples svg.shot text", INSIDE)), "labels stay within the image"


RECTANGLE = "((r) => [r.left, r.top, r.width, r.height])(e.getBoundingClientRect())"
INSIDE = """((b, [, , w, h]) => b.x >= -1 && b.y >= -2 && b.x + b.width <= +w + 1 &&
  b.y + b.height <= +h + 2)(e.getBBox(), e.ownerSVGElement.getAttribute("viewBox").split(" "))"""


def test_activations_come_with_their_ranges(page: Page, cells_page: Path) -> None:
    page.open(cells_page)
    charts = page.run("""[...document.querySelectorAll('#tensors svg.chart')].map((s) => {
        const range = s.querySelector('.range').getBoundingClientRect();
        const values = [...s.querySelectorAll('.value')].map((v) => v.getBoundingClientRect());
        return [range.width, values.length, Math.max(...values.map((v) => v.height)), s.ariaLabel];
    })""")
    assert len(charts) == 8
    for width, count, tallest, label in charts:
        assert width > 20 and count > 10 and tallest > 50
        assert "quantized range" in label


def test_a_classifier_shows_its_ranking(page: Page, resnet_page: Path) -> None:
    page.open(resnet_page, width=WIDTHS["phone"])
    assert page.problems == []
    assert page.run("document.documentElement.scrollWidth") <= WIDTHS["phone"]
    shown = page.text("#samples ol.ranked li")
    assert len(shown) == 4 * 5
    assert "class" in shown[0] and "%" in shown[0]
    assert "mAP" not in page.text("body")[0]


def test_an_ncnn_bundle_shows_its_layers_and_both_models(
    page: Page, ncnn_bundle: Exported, tmp_path: Path
) -> None:
    out = tmp_path / "ncnn.html"
    with cache_in(ncnn_bundle.cache):
        stage.write(ncnn_bundle.bundle, out)
    page.open(out)
    assert page.problems == []
    kinds = column(page, "layers-table", 3)
    assert kinds.count("Convolution") > 20
    assert "SQNR (DB)" in [title.upper() for title in page.text("#layers-table th")]
    assert page.text("#samples figcaption b")[:2] == [
        "FP32, golden sample 0",
        "INT8, golden sample 0",
    ]
    assert page.text("#sizes tbody th")[:2] == ["FP32 (ncnn)", "INT8 (ncnn)"]
    assert any("Activations" in line for line in page.text(".remarks li"))


def test_without_the_float_model_the_page_says_so(
    page: Page, cells_bundle: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # this test's own cache is empty
    out = tmp_path / "alone.html"
    assert cli.run(["report", str(cells_bundle.bundle), "--out", str(out), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert any("--float" in line for line in answer["missing"])
    page.open(out)
    assert page.problems == []
    assert any("float model is not in a bundle" in line for line in page.text(".remarks li"))
    assert page.text("#samples figcaption b") == ["INT8, golden sample 0", "INT8, golden sample 1"]
    assert "SQNR (DB)" not in [title.upper() for title in page.text("#layers-table th")]
    assert page.text("#tensors h2") == ["Activations and their ranges"]


def test_a_strange_bundle_cannot_write_into_the_page(
    page: Page, cells_bundle: Exported, tmp_path: Path
) -> None:
    evil = (
        "</script><script>document.title='owned'</script><img src=x onerror=document.title='owned'>"
    )
    with cache_in(cells_bundle.cache):
        report = stage.build(cells_bundle.bundle)
    sample = report.samples[0]
    views = tuple(
        dataclasses.replace(
            view, boxes=tuple(dataclasses.replace(box, name=evil) for box in view.boxes)
        )
        for view in sample.views
    )
    spoiled = dataclasses.replace(
        report,
        name=evil, verdict=evil, target=evil, tone='good" onload="x', facts=((evil, evil),),
        samples=(dataclasses.replace(sample, name=evil, views=views),),
        layers=tuple(dataclasses.replace(layer, name=evil) for layer in report.layers),
        tensors=tuple(dataclasses.replace(tensor, name=evil) for tensor in report.tensors),
        missing=(evil,),
    )  # fmt: skip
    from edgekit.report.bundle_page import render

    out = tmp_path / "evil.html"
    out.write_text(render(spoiled), encoding="utf-8")
    page.open(out)
    assert page.problems == []
    assert page.run("document.title") != "owned"
    assert page.run("document.scripts.length") == 1
    assert page.text("h1") == [evil]


def test_a_report_never_goes_into_the_bundle(
    cells_bundle: Exported, capsys: pytest.CaptureFixture[str]
) -> None:
    inside = cells_bundle.bundle / "report.html"
    assert cli.run(["report", str(cells_bundle.bundle), "--out", str(inside)]) == 8
    assert "beside it" in capsys.readouterr().err
    assert not inside.exists()


def test_a_damaged_bundle_is_not_reported_on(
    cells_bundle: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(cells_bundle.bundle, copy)
    image = copy / "golden" / "000" / "image.png"
    image.write_bytes(image.read_bytes()[:-1])
    assert cli.run(["report", str(copy)]) == 9
    assert "image.png" in capsys.readouterr().err
    assert not (tmp_path / "copy.html").exists()
    assert cli.run(["report", str(tmp_path)]) == 8
    # another float model than the one of the chain is refused
    shutil.rmtree(copy)
    shutil.copytree(cells_bundle.bundle, copy)
    other = copy / "onnxruntime" / "model.onnx"
    assert cli.run(["report", str(copy), "--float", str(other)]) == 9
    assert "not the float model" in capsys.readouterr().err


def test_export_writes_the_page_beside_the_bundle(
    resnet_bundle: Exported, assets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.integration.conftest import RESNET20

    page_file = resnet_bundle.bundle.with_name(resnet_bundle.bundle.name + ".html")
    with cache_in(resnet_bundle.cache):
        code = cli.run([
            "export", str(assets / "models" / "resnet20-12fca82f.th"), *RESNET20,
            "--target", "x86-int8", "--images", str(resnet_bundle.images), "--method", "minmax",
            "--data", str(assets / "cifar10" / "test.npz"), "--limit", "200",
            "--out", str(resnet_bundle.bundle), "--report", "--json",
        ])  # fmt: skip
    answer = json.loads(capsys.readouterr().out)
    assert code == 0 and answer["unchanged"]
    assert answer["report"] == str(page_file)
    assert "<!doctype html>" in page_file.read_text()


# --- the page of a comparison


@pytest.fixture(scope="module")
def compare_file(
    cells_bundle: Exported, assets: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The cells checkpoint, its bundle, and a file that is no model."""
    folder = tmp_path_factory.mktemp("compare")
    (folder / "broken.onnx").write_bytes(b"no model")
    out = folder / "compare.html"
    with cache_in(cells_bundle.cache):
        code = cli.run([
            "compare", str(assets / "models" / "yolo11n_cells_p50.pt"), str(cells_bundle.bundle),
            str(folder / "broken.onnx"), "--data", str(assets / "txl_pbc" / "data.yaml"),
            "--limit", "12", "--runs", "3", "--resamples", "20", "--format", "html", "--out", str(out),
        ])  # fmt: skip
    assert code == 0
    return out


@pytest.mark.parametrize("size", list(WIDTHS))
def test_a_comparison_as_a_page(page: Page, compare_file: Path, size: str) -> None:
    assert compare_file.stat().st_size < 1_000_000
    page.open(compare_file, width=WIDTHS[size], dark=size == "tablet")
    assert page.problems == []
    assert page.run("document.documentElement.scrollWidth") <= WIDTHS[size]
    assert page.run(CONTRAST) == []
    assert page.text("h2") == ["mAP50-95 against latency", "Models", "Notes"]
    assert page.text("#compare-table tbody th") == ["yolo11n_cells_p50", "cells-x86-int8", "broken"]
    assert any("broken" in line for line in page.text(".remarks li"))


def test_the_pareto_plot_places_models_by_their_figures(page: Page, compare_file: Path) -> None:
    page.open(compare_file)
    names = each(page, ".pareto circle", "e.querySelector('title').textContent")
    rectangles = each(page, ".pareto circle", RECTANGLE)
    places = {
        name: (x + width / 2, y + height / 2, width)
        for name, (x, y, width, height) in zip(names, rectangles, strict=True)
    }
    assert set(places) == {"yolo11n_cells_p50", "cells-x86-int8"}
    titles = page.text("#compare-table thead th")
    latency = next(i for i, t in enumerate(titles, 1) if t.startswith("ONNX Runtime (ms)"))
    metric = next(i for i, t in enumerate(titles, 1) if t.startswith("mAP50-95"))
    names = page.text("#compare-table tbody th")[:2]
    by_time = dict(zip(names, numbers(page, "compare-table", latency), strict=False))
    by_map = dict(zip(names, numbers(page, "compare-table", metric), strict=False))
    one, two = names
    assert (places[one][0] < places[two][0]) == (by_time[one] < by_time[two])
    assert (places[one][1] < places[two][1]) == (by_map[one] > by_map[two]), "higher is better"
    assert places["yolo11n_cells_p50"][2] > places["cells-x86-int8"][2], "area by size"
    ((left, top, width, height),) = each(page, ".pareto", RECTANGLE)
    for x, y, _ in places.values():
        assert left < x < left + width and top < y < top + height
    assert press(page, "compare-table", latency) == "descending"
    times = numbers(page, "compare-table", latency)
    assert times == sorted(times, reverse=True)
