"""The report's line figures: recall over a number of the data's settings, and over the share of trained weights."""

from __future__ import annotations

import pytest

from bench.reporting import curves, summary
from bench.reporting.build import build
from bench.reporting.curves import Chart, Curve
from bench.store.frame import collect
from tests.test_report import FIGURES, done, read_csv, spec, write

SHARES = (0.0, 0.5, 1.0)


def entry(method: str, share: float, seed: int, recall: float, mixed: tuple = (), **settings):
    dataset = {"shuffle_captions": share, "shuffle_seed": 0} if share else {}
    a_spec = spec(method, seed, dataset=dataset | settings.pop("dataset", {}), **settings)
    if mixed:
        a_spec["evaluation"] = {"interpolate": SHARES}
    a_spec, result = done(a_spec, recall)
    if mixed:
        best = SHARES[max(range(3), key=lambda at: mixed[at])]
        result["metrics"] |= {"interpolation": {"share": best, "shares": SHARES, "val_mean_recall": mixed}}
    return a_spec, result


ENTRIES = [
    entry("lora", 0.0, 0, 40.0, (10.0, 20.0, 31.0), rank=4),
    entry("lora", 0.0, 1, 42.0, (10.0, 34.0, 33.0), rank=4),
    entry("lora", 0.4, 0, 30.0, (10.0, 20.0, 15.0), rank=4),
    entry("lora", 0.4, 1, 34.0, (10.0, 22.0, 17.0), rank=4),
    *(entry("linear_probe", share, 0, 20.0 - 10 * share) for share in (0.4, 0.0, 0.2)),
]


def charts(folder) -> dict[str, Chart]:
    runs = collect(folder)
    return {chart.name: chart for chart in curves.charts(runs, summary.summarise(runs))}


def test_recall_over_the_share_of_shuffled_captions(tmp_path):
    found = charts(write(tmp_path / "s", ENTRIES))["recall_vs_shuffle_captions"]
    [(title, lines)] = found.panels.items()
    assert title == "rsitmd, ViT-B-32-quickgelu/openai"
    spread = (pytest.approx(2**0.5), pytest.approx(8**0.5))
    assert lines[0] == Curve("LoRA", (0.0, 0.4), (41.0, 32.0), spread)
    assert lines[1] == Curve("Linear probe", (0.0, 0.2, 0.4), (20.0, 18.0, 16.0), (0.0, 0.0, 0.0))


def test_recall_over_the_share_of_trained_weights(tmp_path):
    panels = charts(write(tmp_path / "s", ENTRIES))["validation_vs_share"].panels
    plain, noisy = panels.values()
    assert [title.partition(",")[0] for title in panels] == ["rsitmd", "rsitmd (shuffle_captions=0.4)"]
    root = 2**0.5
    expected = Curve(
        "LoRA", SHARES, (10.0, 27.0, 32.0), (0.0, pytest.approx(7 * root), pytest.approx(root)), (0.5, 1.0)
    )
    assert list(plain) == [expected]
    assert [(curve.y, curve.chosen) for curve in noisy] == [((10.0, 21.0, 16.0), (0.5,))]


def test_other_numbers_of_the_data_are_axes_and_seeds_are_not(tmp_path):
    entries = [
        entry("lora", 0.0, 0, recall, rank=rank, dataset={"val_fraction": fraction, "split_seed": seed})
        for recall, (rank, fraction, seed) in enumerate([(4, 0.1, 0), (4, 0.2, 0), (8, 0.1, 0), (8, 0.1, 1)])
    ]
    found = charts(write(tmp_path / "s", entries))
    assert list(found) == ["recall_vs_val_fraction"]
    [lines] = found["recall_vs_val_fraction"].panels.values()
    assert [(curve.label, curve.x, curve.y) for curve in lines] == [("LoRA r=4", (0.1, 0.2), (0.0, 1.0))]


def test_the_report_has_them(tmp_path):
    written = build(write(tmp_path / "s", ENTRIES), tmp_path / "out")
    names = {path.name for path in written.paths}
    for name in ("recall_vs_shuffle_captions", "validation_vs_share"):
        assert {f"{name}.png", f"{name}.pdf"} <= names
        assert (tmp_path / "out" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    rows = read_csv(tmp_path / "out" / "table.csv")
    assert [row["interpolated"] for row in rows] == ["0.5 or 1", "0.5", "", "", ""]
    assert "interpolated=0.5 or 1" in rows[0]["config"]
    assert all("interpolated" not in row["config"] for row in rows[2:])
    html = written.index.read_text(encoding="utf-8")
    assert html.count("<figure") == 3
    assert "Rings: the share that a seed chose" in html


def test_a_report_without_has_none(tmp_path):
    entries = [done(spec("lora", seed, rank=4), 40.0) for seed in (0, 1)]
    written = build(write(tmp_path / "s", entries), tmp_path / "out")
    assert {path.stem for path in written.paths if "_vs_" in path.name} == set(FIGURES[:3])
    assert written.index.read_text(encoding="utf-8").count("<figure") == 1


@pytest.mark.parametrize("panels", [1, 2, 3])
def test_every_line_is_drawn_and_named(panels):
    lines = [Curve(f"m{i} $x", (0.0, 1.0), (1.0 * i, 2.0), (0.0, 0.5), (1.0,)) for i in range(9)]
    chart = Chart("c", "x", "y", "caption", {f"p{i}": lines for i in range(panels)})
    figure = curves.draw(chart)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert len(shown) == panels
    for axes in shown:
        rings = [line for line in axes.lines if line.get_markersize() == 8]
        assert [line.get_xydata().tolist() for line in rings] == [[[1.0, 2.0]]] * 9
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [rf"m{i} \$x" for i in range(9)]
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    box = legend.get_window_extent(renderer)
    assert not any(box.overlaps(axes.get_window_extent(renderer)) for axes in shown)
