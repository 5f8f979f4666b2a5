"""The report's page in a real Chromium: table, figures, gallery, phone and laptop, light and dark, hostile texts."""

from __future__ import annotations

import base64
import html
import json
import math
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vl_convert
from PIL import Image

from bench import data
from bench.config.settings import CaptionSettings
from bench.core import found
from bench.reporting import gallery, live, page
from bench.reporting.build import build
from bench.store import testset
from tests.browser import Browser, chromium
from tests.test_report import Entry, done, failed, spec, twelve, write

HOSTILE = '<script>alert("1")</script>&amp;_%$\'"`${x}` 中文 🛰️ ' + "long" * 30
SHOWN = HOSTILE.replace("_", " ")  # of a method that no plug-in knows: its name, readable
CLASSES = ("飞机 & <b>airport</b>", "river 🏞️", HOSTILE)
IMAGES, EACH = 12, 2


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


def with_costs(entries: list[Entry]) -> list[Entry]:
    """The entries with costs that differ, and without a training time where nothing is trained."""
    for a_spec, result in entries:
        if isinstance(result, dict) and result["cost"]:
            params = result["cost"]["trainable_params"]
            result["cost"]["train_seconds"] = 60 + 40 * math.log10(params) + a_spec["seed"] if params else None
            result["cost"] |= {"peak_bytes": 2 * 10**9 + 40 * params, "flops_per_pair": 14 * 10**9 + 100 * params}
    return entries


def write_histories(folder: Path) -> None:
    """Training curves of six epochs, best in the fifth, for the runs that train."""
    for result in folder.glob("*/result.json"):
        content = json.loads(result.read_text())
        if content["cost"] and content["cost"]["trainable_params"]:
            best = content["metrics"]["test"]["mean_recall"]
            lines = [f"{e},{4 / e:.3f},0.1,{best - abs(e - 5):.2f},1.0" for e in range(1, 7)]
            text = "\n".join(["epoch,train_loss,lr,val_mean_recall,seconds", *lines])
            (result.parent / "history.csv").write_text(text + "\n")


def write_dataset(root: Path) -> CaptionSettings:
    """Pictures of one colour each, with captions of their own, in a folder: one's own data."""
    root.mkdir()
    rows = []
    for index in range(2 * IMAGES):
        Image.new("RGB", (60, 40), (9 * index, 100, 255 - 9 * index)).save(root / f"picture{index}.png")
        split = "test" if index < IMAGES else "train" if index < 2 * IMAGES - 2 else "val"
        rows += [{"image": f"picture{index}.png", "caption": f"view {index} {k}", "split": split} for k in range(EACH)]
    (root / "captions.json").write_text(json.dumps(rows))
    return data.resolved(CaptionSettings(name="captions", root=str(root)))


def add_finds(folder: Path, settings: CaptionSettings) -> None:
    """Write the test set with hostile captions and classes, and what each run found.

    Zero-shot finds only the image of every third, in place 5; the others find all, in the first place.
    """
    dataset = data.load(settings)
    captions = [[f"caption {i} {k} {HOSTILE if i == 0 else ''}" for k in range(EACH)] for i in range(IMAGES)]
    labels = [CLASSES[i % 3] for i in range(IMAGES)]
    names = [item.image for item in dataset.test]
    testset.write(folder, "my <i>own</i> data", dataset.sha256, names, labels, captions)
    owner = np.arange(IMAGES * EACH) // EACH
    for number, result in enumerate(sorted(folder.glob("*/result.json"))):
        content = json.loads(result.read_text())
        if content["status"] != "finished":
            continue
        rng = np.random.default_rng(number)
        images = np.stack([rng.permutation(np.delete(np.arange(IMAGES), image))[:10] for image in owner])
        texts = np.stack([rng.permutation(len(owner))[:10] for _ in range(IMAGES)])
        if content["spec"]["method"]["name"] != "zero_shot":
            images[:, 0], texts[:, 0] = owner, np.arange(IMAGES) * EACH
        else:
            images[owner % 3 == 0, 4] = owner[owner % 3 == 0]
        (result.parent / "top.npz").write_bytes(found.to_npz(found.Found(texts, images)))
        content["provenance"]["dataset_sha256"] = dataset.sha256
        result.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of 12 methods with everything on it."""
    folder = tmp_path_factory.mktemp("page") / "page"
    settings = write_dataset(folder.parent / "own")
    entries = [*twelve(3), done(spec(HOSTILE, 0), 12.5, 70_000), failed(spec("maple"), f"no memory {HOSTILE}")]
    entries += [
        done(spec(f"{HOSTILE}2", 0, train={"lr": 3e-3}), 11, 60_000),
        *(failed(spec("maple", seed), "lost") for seed in (1, 2, 3)),
    ]
    for a_spec, _ in entries:
        a_spec["dataset"] = settings.model_dump(mode="json")
    write(folder, with_costs(entries))
    write_histories(folder)
    add_finds(folder, settings)
    return build(folder, folder.parent / "out").index


def column(browser: Browser, title: str) -> list[str]:
    """The cells of a column of the results, without the spread."""
    cells = browser.texts(f'#table td[data-label="{title}"]')
    return [cell.split("\n")[0] for cell in cells]


def rows(browser: Browser) -> list[str]:
    return browser.texts("#table tbody th")


def numbers(cells: list[str]) -> list[float]:
    return [float(cell.replace(",", "")) for cell in cells if cell != "–"]


def test_headings_sort_and_say_so(browser: Browser, index: Path) -> None:
    browser.open(index)
    first = rows(browser)
    assert len(first) == 15
    best = [row.split("\t")[0] for row in browser.texts("#table tr:has(td.best)")]
    assert [text.split("\n")[0] for text in best] == ["HarMA"]
    browser.click('#table button[data-key="trainable_params"]')
    assert browser.js("return document.querySelectorAll('#table [aria-sort]').length") == 1
    assert browser.js("return document.querySelector('#table [aria-sort]').ariaSort") == "descending"
    cells = column(browser, "Params")
    assert numbers(cells) == sorted(numbers(cells), reverse=True)
    assert cells[-1] == "–"
    browser.click('#table button[data-key="trainable_params"]')
    cells = column(browser, "Params")
    assert numbers(cells) == sorted(numbers(cells))
    assert cells[-1] == "–"  # dashes last, whichever way
    assert browser.js("return document.activeElement.dataset.key") == "trainable_params"  # the focus stays
    browser.click('#table button[data-key="method"]')
    assert rows(browser)[0] == browser.texts("#table tbody tr:first-child th")[0]
    assert [name for name in rows(browser) if name[0] != "<"] == sorted(
        (name for name in first if name[0] != "<"), key=str.casefold
    )


def test_filters_choose_rows_of_table_and_figure(browser: Browser, index: Path) -> None:
    browser.open(index)
    marks = "return document.querySelectorAll('#chart svg .mark-symbol.role-mark path').length"
    assert browser.until(lambda: browser.js(marks)) == 13
    browser.type("#query", "LORA rank=8")
    browser.until(lambda: rows(browser) == ["LoRA"])
    assert browser.texts("#count") == ["1 of 15 rows"]
    browser.until(lambda: browser.js(marks) == 1)
    browser.type("#query", "")
    browser.until(lambda: len(rows(browser)) == 15)
    browser.choose("#pick-method", "LoRA")
    assert column(browser, "Config") == ["rank=2", "rank=8", "rank=32◆"]
    browser.click("#chosen")
    assert column(browser, "Config") == ["rank=32◆"]
    browser.choose("#pick-method", "")
    assert len(rows(browser)) == 13  # the only row of a method stays
    browser.click("#filters button[type=reset]")
    browser.until(lambda: len(rows(browser)) == 15)
    browser.click("#picker summary")
    browser.click('#columns input[data-key="i2t_r5"]')
    assert "I2T R@5" not in browser.texts("#table thead th")
    browser.click('#columns input[data-key="flops_per_pair"]')
    assert "151" not in column(browser, "FLOPs a pair")[0]
    assert column(browser, "FLOPs a pair")[0] == "14.0 G"


ROW = "return bench.values.method.indexOf(arguments[0])"


def mark_of(browser: Browser, method: str) -> str:
    """A selector of the figure's mark of a method."""
    browser.until(
        lambda: browser.js(
            "const found = [...document.querySelectorAll('#chart svg .mark-symbol.role-mark path')]"
            ".find(e => e.__data__?.datum?.method === arguments[0]);"
            "document.querySelectorAll('#wanted').forEach(e => e.removeAttribute('id'));"
            "if (found) found.id = 'wanted'; return !!found",
            method,
        )
    )
    return "#wanted"


def test_hover_shows_settings_and_costs_and_a_click_compares(browser: Browser, index: Path) -> None:
    browser.open(index)
    browser.hover(mark_of(browser, "HarMA"))
    tip = browser.until(lambda: "\n".join(browser.texts("#vg-tooltip-element.visible")))
    for text in ("HarMA", "47.20 ± 0.70", "5,934,397", "Peak memory", "2.24 GB", "Train time", "method.name\tharma"):
        assert text in tip
    browser.click(mark_of(browser, "HarMA"))
    browser.until(lambda: browser.texts("#compared thead th"))
    browser.click('#table input[aria-label="Compare LoRA rank=2"]')
    heads = browser.texts("#compared thead th")
    assert [head.split(" ✕")[0] for head in heads] == ["HarMA", "LoRA rank=2"]
    compared = "\n".join(browser.texts("#compared tbody tr"))
    for text in ("47.20 ± 0.70\t39.70 ± 0.70", "method.rank\t–\t2", "method.name\tharma\tlora"):
        assert text in compared
    assert "train.lr" not in compared
    assert browser.js("return document.querySelectorAll('#table tr.pinned').length") == 2
    browser.click(f'#table tr[data-row="{browser.js(ROW, f"{SHOWN}2")}"] input')
    assert "train.lr\t0.0001\t0.0001\t0.003" in "\n".join(browser.texts("#compared tbody tr"))  # most rows' and its own
    browser.click(f'#table tr[data-row="{browser.js(ROW, f"{SHOWN}2")}"] input')
    browser.click("#compared button.drop")
    assert len(browser.texts("#compared thead th")) == 1
    browser.click('#table input[aria-label="Compare LoRA rank=8"]')
    compared = "\n".join(browser.texts("#compared tbody tr"))
    assert "method.rank\t2\t8" in compared
    assert "method.name" not in compared  # both rows have it, though most have another


def test_axes_can_be_chosen(browser: Browser, index: Path) -> None:
    browser.open(index)
    browser.choose("#x", "peak_bytes")
    browser.choose("#y", "t2i_r1")
    label = "return document.querySelector('#chart svg').ariaLabel ?? document.querySelector('#chart svg').innerHTML"
    browser.until(lambda: "Peak memory" in browser.js(label) and "T2I R@1" in browser.js(label))


@pytest.mark.parametrize(
    ("width", "ticks"),
    [(1440, "50k 100k 200k 500k 1M 2M 5M 10M 20M 50M 100M"), (390, "100k 1M 10M 100M")],
)
def test_ticks_are_round_and_the_legend_names_marks_alone(
    browser: Browser, index: Path, width: int, ticks: str
) -> None:
    browser.open(index, width)
    labels = browser.js("return [...document.querySelectorAll('#chart .role-axis-label text')].map(e => e.textContent)")
    assert " ".join(text for text in labels if text[-1:] in "kM") == ticks
    names = browser.js("return [...document.querySelectorAll('#chart .role-legend-label')].map(e => e.textContent)")
    assert "HarMA" in names
    assert "Zero-shot CLIP" not in names  # it is a line, named in place
    assert len(names) == 11


def test_a_failed_run_is_a_marked_count_and_no_shorter_mean(browser: Browser, index: Path) -> None:
    browser.open(index)
    at = rows(browser).index("MaPLe")
    assert column(browser, "Seeds")[at] == "0 of 4†"
    assert {column(browser, title)[at] for title in ("mR", "I2T R@1", "Train time", "Peak memory")} == {"–"}
    assert "4 not in the table" in browser.texts("#missing, a[href='#missing']")[0]
    failures = browser.js("return [...document.querySelectorAll('.log > li')].map(e => e.textContent)")
    assert len(failures) == 2
    assert "3 runs failed: RuntimeError: lost" in failures[1]


def test_training_curves_ring_the_chosen_epoch(browser: Browser, index: Path) -> None:
    browser.open(index)
    rings = (
        "return [...document.querySelectorAll('#curves svg .mark-symbol.role-mark path')]"
        ".map(e => e.__data__?.datum).filter(d => d?.chosen).map(d => d.epoch)"
    )
    epochs = browser.until(lambda: browser.js(rings))
    assert set(epochs) == {5}
    browser.click('#table input[aria-label="Compare LoRA rank=2"]')
    browser.until(
        lambda: len(set(browser.texts("#curves-note"))) == 1 and "compared" in browser.texts("#curves-note")[0]
    )


def test_the_gallery_marks_right_and_wrong_of_two_rows(browser: Browser, index: Path) -> None:
    browser.open(index)
    names = browser.texts("#gallery-b option")
    browser.choose("#gallery-b", str(names.index("Zero-shot CLIP")))
    browser.choose("#gallery-only", "a")
    browser.click("#gallery-more button")
    asked = [text.split(" ")[1] for text in browser.texts(".gallery-query > p")]
    assert asked == [str(image) for image in range(IMAGES) for _ in range(EACH) if image % 3]
    for query in range(len(asked)):
        sides = [f".gallery-query:nth-child({query + 1}) .side:nth-child({side}) .hit" for side in (1, 2)]
        assert [text.startswith("✓ right") for text in browser.texts(sides[0])] == [True, False, False, False, False]
        assert [text.startswith("✗ wrong") for text in browser.texts(sides[1])] == [True] * 5
    edges = (
        "return [...new Set([...document.querySelectorAll(arguments[0])].map(e => getComputedStyle(e).borderTopColor))]"
    )
    assert browser.js(edges, ".hit.right") == ["rgb(27, 122, 61)"]
    assert browser.js(edges, ".hit.wrong") == ["rgb(220, 223, 227)"]
    assert browser.texts(".hit.right .class, .hit.wrong .good") == browser.texts(".hit.right .class:has(.good)")
    sizes = "return [...document.querySelectorAll('.hit img')].map(e => e.complete && e.naturalWidth)"
    assert set(browser.js(sizes)) == {gallery_width()}
    [words] = browser.texts("#gallery-wins")
    assert words.startswith(
        "Of all 24 captions, A finds a right one among its first five where B does not for 16, and B"
    )
    assert words.endswith("where A does not for 0.")
    browser.choose("#gallery-only", "b")
    assert browser.texts("#gallery-queries") == ["No such query among those that are here."]
    browser.choose("#gallery-only", "both")
    asked = [text.split(" ")[1] for text in browser.texts(".gallery-query > p")]
    assert asked == ["0", "0", "3", "3", "6", "6"]
    assert browser.js("return document.querySelector('#gallery-more').hidden") is False  # two more
    browser.choose("#gallery-only", "neither")
    assert browser.texts("#gallery-queries") == ["No such query among those that are here."]
    browser.choose("#gallery-only", "")
    browser.choose("#gallery-side", "i2t")
    assert browser.texts(".hits.texts .hit")
    assert "12 images" in browser.texts("#gallery-wins")[0]
    assert any("of 4" in text for text in browser.texts("#gallery-confused tbody td"))


def test_classes_mistaken_are_named_in_their_columns(browser: Browser, index: Path) -> None:
    """`test_confused_classes_are_counted_by_hand` has the counts."""
    browser.open(index)
    browser.choose("#gallery-b", str(browser.texts("#gallery-b option").index("Zero-shot CLIP")))
    known = browser.js("return bench.data.galleries[0].rows[document.querySelector('#gallery-b').value].confused.t2i")
    assert len(known) == 6
    shown = "return [...document.querySelectorAll('#gallery-confused > :nth-child(2) tbody tr')]"
    shown += ".map(row => [...row.children].map(cell => cell.textContent))"
    assert browser.js(shown) == [[wanted, got, f"{count} of {of}"] for wanted, got, count, of in known]
    assert browser.texts("#gallery-confused > :nth-child(1)") == ["A: none, or the dataset names no classes."]


def gallery_width() -> int:
    """The pictures of 60 x 40 are not made larger."""
    return 60


def test_hostile_texts_stay_texts(browser: Browser, index: Path) -> None:
    browser.open(index)
    browser.driver.get_log("browser")
    assert browser.js("return document.querySelectorAll('main script, main b, main i').length") == 0
    assert SHOWN.split(" long")[0] in "\n".join(rows(browser))
    assert "no memory <script>" in browser.js("return document.querySelector('.log').textContent")
    browser.hover(mark_of(browser, SHOWN))
    tip = browser.until(lambda: "\n".join(browser.texts("#vg-tooltip-element.visible")))
    assert '<script>alert("1")</script>&amp; %$' in tip
    assert browser.js("return document.querySelectorAll('#vg-tooltip-element script').length") == 0
    assert CLASSES[0] in "\n".join(browser.texts("#gallery .class, #gallery td, #gallery tbody th"))
    for side in ("t2i", "i2t"):
        browser.choose("#gallery-side", side)
        assert browser.js(
            "return document.querySelector('#gallery-queries').textContent.includes(arguments[0])", HOSTILE
        )
        assert browser.js("return document.querySelectorAll('main script, main b, main i').length") == 0


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1440, 1024, 390])
def test_everything_fits_and_nothing_complains(browser: Browser, index: Path, width: int, dark: bool) -> None:
    browser.requests(), browser.complaints()
    browser.open(index, width, dark)
    browser.js("document.querySelectorAll('details').forEach(e => e.open = true)")
    for method in ("HarMA", SHOWN, f"{SHOWN}2"):
        browser.click(f'#table tr[data-row="{browser.js(ROW, method)}"] input')
    browser.choose("#gallery-side", "i2t")
    browser.until(lambda: "compared rows" in browser.texts("#curves-note")[0])
    time.sleep(0.3)
    wide = "return [document.documentElement, ...document.querySelectorAll('#table, .wide, section')].filter("
    wide += "e => e.scrollWidth > e.clientWidth).map(e => e.id || e.className)"
    assert browser.js("return innerWidth") == width
    assert browser.js(wide) == []
    paper = browser.js("return getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(22, 25, 29)" if dark else "rgb(255, 255, 255)")
    ink = "return getComputedStyle(document.querySelector('#chart .role-axis-label text')).fill"
    assert browser.js(ink) == ("rgb(163, 168, 174)" if dark else "rgb(95, 99, 104)")
    browser.type("#query", "no row has this")
    browser.until(lambda: browser.texts("#chart .note"))
    browser.type("#query", "zero_shot")
    browser.until(lambda: browser.js("return document.querySelectorAll('#chart svg').length"))
    assert browser.complaints() == []
    assert browser.requests() == [index.resolve().as_uri()]


def test_dark_mode_is_followed_while_the_page_is_open(browser: Browser, index: Path) -> None:
    browser.open(index)
    ink = "return getComputedStyle(document.querySelector('#chart .role-axis-label text')).fill"
    first = "return getComputedStyle(document.querySelector('#chart .role-legend-symbol path')).fill"
    assert browser.js(ink) == "rgb(95, 99, 104)"
    assert browser.js(first) == "rgb(213, 94, 0)"
    browser.light(False)
    browser.until(lambda: browser.js(ink) == "rgb(163, 168, 174)")
    assert browser.js(first) == "rgb(240, 138, 60)"
    assert browser.js("return getComputedStyle(document.body).color") == "rgb(230, 230, 230)"
    browser.hover(mark_of(browser, "HarMA"))
    browser.until(lambda: browser.texts("#vg-tooltip-element.visible.dark-theme"))
    browser.light(True)
    browser.until(lambda: browser.js(ink) == "rgb(95, 99, 104)")


def test_what_a_text_smuggled_in_would_do_is_forbidden(browser: Browser, index: Path, tmp_path: Path) -> None:
    """Were a text not escaped, the page's policy would still keep its scripts from running and its pictures away."""
    bad = '<script>window.hit = 1</script><img src="http://127.0.0.1:9/x.png" onerror="window.hit = 1">'
    planted = tmp_path / "planted.html"
    planted.write_text(index.read_text().replace("<main>", f"<main>{bad}"))
    browser.open(planted)
    assert browser.js("return window.hit ?? null") is None
    assert any("Content Security Policy" in text for text in browser.complaints())
    browser.requests()


def test_500_runs_are_below_10_megabytes(browser: Browser, tmp_path: Path) -> None:
    settings = write_dataset(tmp_path / "own")
    grid = [(rank, seed) for rank in range(1, 168) for seed in range(3)]
    entries = [done(spec("lora", seed, rank=rank), 30 + rank % 17, 1000 * rank) for rank, seed in grid][:500]
    for a_spec, _ in entries:
        a_spec["dataset"] = settings.model_dump(mode="json")
    folder = write(tmp_path / "five", entries)
    write_histories(folder)
    add_finds(folder, settings)
    built = build(folder, tmp_path / "out", plain=True)
    assert 900_000 < built.index.stat().st_size < 10_000_000
    browser.open(built.index)
    assert len(rows(browser)) == 50
    browser.click("#more-rows button")
    assert len(rows(browser)) == 167


def test_the_same_results_give_the_same_page(index: Path, tmp_path: Path) -> None:
    again = build(index.parents[1] / "page", tmp_path / "out").index
    assert again.read_bytes() == index.read_bytes()


def test_runs_without_finds_and_broken_ones_have_a_page(tmp_path: Path) -> None:
    settings = write_dataset(tmp_path / "own")
    entries = twelve(1)
    for a_spec, _ in entries:
        a_spec["dataset"] = settings.model_dump(mode="json")
    folder = write(tmp_path / "r", entries)
    add_finds(folder, settings)
    tops = sorted(folder.glob("*/top.npz"))
    tops[0].write_bytes(b"PK")
    tops[1].unlink()
    (tmp_path / "own" / "picture3.png").write_bytes(b"no picture")
    (next(folder.glob("lora*")) / "history.csv").write_text("epoch,train_loss\n1,x\n")
    text = build(folder, tmp_path / "out").index.read_text()
    content: dict[str, Any] = json.loads(text.split('id="data">')[1].split("</script>")[0])
    (shown,) = content["galleries"]
    assert len(shown["rows"]) == len(tops) - 2
    assert shown["images"]["3"][2] is None
    assert shown["images"]["4"][2].startswith("data:image/webp;base64,")
    (tmp_path / "own" / "captions.json").unlink()
    text = build(folder, tmp_path / "out").index.read_text()
    content = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert {each[2] for each in content["galleries"][0]["images"].values()} == {None}


def test_telling_queries_are_those_in_which_rows_differ() -> None:
    right = np.zeros((3, 100, 5), bool)
    right[:, :, 4] = True  # all find every query's item in the fifth place
    right[0, 90:95, 0] = True
    chosen = gallery.telling(right)
    assert len(chosen) == gallery.QUERIES
    assert set(range(90, 95)) < set(chosen)
    assert chosen == sorted(chosen)
    assert max(np.diff(chosen)) < 20  # equal ones are spread over the test set


def test_confused_classes_are_counted_by_hand() -> None:
    labels = ["river", "river", "port", None]
    asked, first = np.array([0, 0, 1, 2, 3, 2]), np.array([1, 2, 2, 0, 0, 3])
    assert gallery.confused(labels, asked, first) == [["river", "port", 2, 3], ["port", "river", 1, 1]]


def test_the_script_cannot_be_left_by_any_text() -> None:
    text = page._json({"a": "</script><!-- \u2028"})
    assert "<" not in text
    assert json.loads(text) == {"a": "</script><!-- \u2028"}


def test_pictures_for_readers_without_scripts_are_light_and_dark(index: Path) -> None:
    pairs = re.findall(
        r'<source srcset="([^"]+)" media="\(prefers-color-scheme: dark\)">\s*<img src="([^"]+)"', index.read_text()
    )
    assert pairs
    for pair in pairs:
        dark, light = (base64.b64decode(url.partition("base64,")[2]).decode() for url in pair)
        for picture, own, other in ((dark, "#16191d", "#ffffff"), (light, "#ffffff", "#16191d")):
            assert f"fill: {own}" in picture
            assert f"fill: {other}" not in picture


def test_every_package_in_the_bundle_has_its_licence_on_the_page(index: Path) -> None:
    """What vl-convert bundles is in its library as name@version; the page's list has each, in these versions."""
    library = Path(vl_convert.vl_convert.__file__).read_bytes()
    named = set(re.findall(rb"/npm/((?:vega|d3|lodash|topo|json-|robust|delau|intern)[a-z0-9.-]*)@([0-9.]+)/", library))
    lite = vl_convert.get_vegalite_versions()[-1].encode()
    wanted = {
        f"{name.decode()} {version.decode()}"
        for name, version in named
        if name != b"vega-lite" or version.startswith(lite)
    }
    assert {f"vega {vl_convert.get_vega_version()}", "d3-array 3.2.4", "vega-tooltip 1.0.0"} < wanted
    shown = html.unescape(index.read_text().split('<section id="licences">')[1].split("</section>")[0])
    listed = " ".join(shown.split())
    assert [each for each in sorted(wanted) if each not in listed] == []
    for words in ("Redistributions in binary form must reproduce", "University of Washington Interactive Data Lab"):
        assert words in listed


def test_a_live_report_is_written_after_each_result_until_all_are_there(tmp_path: Path) -> None:
    entries = [done(spec("lora")), (spec("vpt"), None), (spec("coop"), None)]
    folder = write(tmp_path / "r", entries)
    ids = [run["run_id"] for run in json.loads((folder / "plan.json").read_text())["runs"]]
    waits, said = [], []

    def sleep(seconds: float) -> None:
        """The first wait brings nothing, the second a result, the third a failure."""
        waits.append(seconds)
        if len(waits) > 1:
            number = len(waits) - 1
            _, result = [None, done(spec("vpt")), failed(spec("coop"), "no")][number] or (None, None)
            (folder / ids[number]).mkdir()
            (folder / ids[number] / "result.json").write_text(
                json.dumps({"run_id": ids[number], "sweep": "s", **result})
            )

    last = live.follow([folder], lambda live: build(folder, tmp_path / "out", live=live), said.append, sleep)
    assert [report.unfinished for report in said] == [2, 1]
    assert last.unfinished == 1
    assert len(waits) == 3
    text = last.index.read_text()
    assert 'http-equiv="refresh"' not in text
    assert '"live":null' in text


def test_a_live_page_keeps_what_was_chosen_when_it_loads_itself_again(browser: Browser, index: Path) -> None:
    out = index.parents[1] / "live"
    built = build(index.parents[1] / "page", out, live=2)
    assert '<noscript><meta http-equiv="refresh" content="2"></noscript>' in built.index.read_text()
    browser.open(built.index)
    browser.js("window.before = true")
    browser.type("#query", "lora")
    browser.until(lambda: len(rows(browser)) == 3)
    browser.click('#table input[aria-label="Compare LoRA rank=2"]')
    browser.until(lambda: not browser.js("return window.before ?? false"))
    browser.until(lambda: rows(browser) == ["LoRA"] * 3)
    assert len(browser.texts("#compared thead th")) == 1
    browser.complaints(), browser.requests()
