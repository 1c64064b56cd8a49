"""The report of a study: verdicts and costs, and the page, the text and the tables that tell them."""

import base64
import csv
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from support.study_cases import HEIGHT, VIEWS, WIDTH, finished, settings, study, truth

from splatexp.data.scene import View
from splatexp.io import svg_plot
from splatexp.io.figures import BACKGROUND
from splatexp.study import view_images
from splatexp.study.fairness import format_percent
from splatexp.study.findings import Metric, analyze, format_decimal, format_p
from splatexp.study.report import page, write
from splatexp.study.tables import cost_table, verdict_table
from splatexp.study.text_report import latex, markdown, results_csv

METRICS = ("psnr", "ssim")
NASTY = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def findings(results):
    return analyze("A study", "adc", results, METRICS, "Which one?", "python -m splatexp.study study=it")


@pytest.fixture(scope="module")
def html(findings):
    return page(findings)


def altered(result, /, **metrics):
    return replace(result, metrics=result.metrics | metrics)


def pair(tmp_path):
    base = finished(tmp_path / "base", "adc", renders=False)
    other = finished(tmp_path / "other", "error", renders=False, config=settings("error_max"))
    return base, other


# what is found ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_verdicts_are_those_of_the_pictures(findings):
    for metric in METRICS:
        said = {name: comparison.verdict for name, comparison in findings.verdicts[metric].items()}
        assert said == {"error": "better", "coarse": "worse", "alike": "within noise"}


def test_a_distance_is_better_when_it_is_small(results):
    far = []
    for run in results:
        views = [view | {"lpips_vgg": 40 - view["psnr"]} for view in run.views]
        far.append(altered(run, per_view=views))
    found = analyze("", "adc", far, ["lpips_vgg"], "", "")
    assert found.verdicts["lpips_vgg"]["error"].verdict == "better"
    assert found.verdicts["lpips_vgg"]["error"].difference < 0


def test_a_metric_that_no_run_has_is_a_dash(results):
    found = analyze("", "adc", results, ["psnr", "lpips_vgg"], "", "")
    assert found.verdicts["lpips_vgg"] == {}
    assert {row[6] for row in verdict_table(found, Metric("lpips_vgg")).rows} == {
        "baseline",
        "no paired views",
    }
    assert "LPIPS (VGG)" in page(found) and "missing values" in markdown(found)


def test_means_are_over_scenes_of_means_over_seeds(tmp_path):
    runs = [
        finished(tmp_path / f"{scene}{seed}", "adc", scene, seed, renders=False, train_seconds=float(seconds))
        for scene, seed, seconds in (("fox", 0, 10), ("fox", 1, 30), ("bonsai", 0, 80))
    ]
    found = analyze(
        "", "adc", [*runs, replace(altered(runs[2], train_seconds=40.0), variant="b")], ["psnr"], "", ""
    )
    assert found.mean("adc", "train_seconds") == 50
    assert found.relative_cost("b", "train_seconds") == "−50 %"
    assert found.mean_and_std("adc", "train_seconds", "fox") == pytest.approx((20, 200**0.5))
    assert found.mean_and_std("b", "train_seconds", "fox") is None


def test_costs_are_told_absolutely_and_relatively(findings):
    table = cost_table(findings)
    assert table.rows[0][:3] == ["adc", "60,000", ""] and table.rows[1][:3] == ["error", "60,000", "0 %"]
    assert table.rows[0][-2] == "14.88"


def test_one_run_more_or_less_is_refused(results):
    with pytest.raises(ValueError, match="metrics: expected at least one"):
        write("unused", "", "adc", results, metrics=())
    with pytest.raises(ValueError, match="baseline: expected one of adc, error.*got nothing"):
        write("unused", "", "nothing", results)
    with pytest.raises(ValueError, match="results: expected one run of adc / fox / seed 0, got 2"):
        write("unused", "", "adc", [*results, results[0]])


def test_numbers_for_people():
    assert [format_decimal(value, 2, True) for value in (-0.001, 0.126, -0.3, None, float("inf"))] == [
        "0.00", "+0.13", "−0.30", "–", "–",
    ]  # fmt: skip
    assert format_decimal(1234567, 0) == "1,234,567"
    assert [format_p(value) for value in (0.0004, 0.0311, None)] == ["< 0.001", "0.031", "–"]
    assert [format_percent(value) for value in (0, 0.017, -0.4, 0.123)] == ["0 %", "+1.7 %", "−40 %", "+12 %"]


# Markdown, CSV, LaTeX --------------------------------------------------------------------------------------


def test_the_csv_holds_every_number(results, findings):
    rows = list(csv.DictReader(io.StringIO(results_csv(findings))))
    assert len(rows) == sum(len(run.views) for run in results)
    told = {(row["variant"], row["scene"], int(row["seed"]), row["view"]): row for row in rows}
    for run in results:
        for view in run.views:
            row = told[run.variant, run.scene, run.seed, view["view"]]
            assert float(row["psnr"]) == view["psnr"] and float(row["ssim"]) == view["ssim"]
            assert row["target_sha256"] == view["target_sha256"] and row["num_gaussians"] == "60000"


def test_the_markdown_has_the_tables(findings):
    text = markdown(findings)
    for heading in ("Verdict", "Scene by scene", "Changes of every variant", "Cost", "Provenance", "Runs"):
        assert f"\n## {heading}\n" in text
    for block in re.findall(r"(?:^\|.*\|\n)+", text, re.M):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    assert "| densify.grow.score | grad2d | error\\_max |" in text


def test_letters_with_a_meaning_are_told_as_they_are(results):
    odd = [replace(run, variant="a|b_<i>" if run.variant == "error" else run.variant) for run in results]
    found = analyze(f"50 % & $x$ {NASTY}", "adc", odd, METRICS, "", "")
    assert "a\\|b\\_\\<i\\>" in markdown(found)
    text = latex(found)
    assert r"a\textbar{}b\_\textless{}i\textgreater{}" in text and r"50 \% \& \$x\$" in text
    plain = text.replace(r"\%", "").replace(r"\&", "").replace(r"\_", "").replace(r"\$", "")
    assert "&" not in re.sub(r"^    .* \\\\$", "", plain, flags=re.M)


def test_every_row_of_the_latex_has_every_column(findings):
    text = latex(findings)
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 2
    rows = re.findall(r"^    (.*) \\\\$", text, re.M)
    assert len(rows) == 2 * 5 and {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {9}
    assert r"\textbackslash{}" not in text and "−" not in text


# the page --------------------------------------------------------------------------------------------------

VOID = {"meta", "link", "img", "input", "br"}


class Reader(HTMLParser):
    """Elements, ids, links and texts of a page; every element that is opened must be closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.words = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.seen if name == tag]


def test_the_page_needs_nothing_else(html):
    reader = Reader(html)
    ids = [attrs["id"] for _, attrs in reader.seen if "id" in attrs]
    assert len(ids) == len(set(ids))
    for attrs in reader.all("a"):
        assert attrs["href"].startswith("#") and attrs["href"][1:] in ids
    for attrs in reader.all("img"):
        assert attrs["src"].startswith("data:image/") and attrs["alt"]
    assert "http" not in html.replace("http-equiv", "") and "url(" not in html and "@import" not in html
    assert [attrs for attrs in reader.all("script") if "src" in attrs] == []
    policy = next(
        a["content"] for a in reader.all("meta") if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'") and "script-src 'sha256-" in policy


def test_the_page_can_be_read_aloud(html):
    reader = Reader(html)
    levels = [int(name[1]) for name, _ in reader.seen if re.fullmatch("h[1-6]", name)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    for attrs in reader.all("svg"):
        assert attrs.get("aria-hidden") or (attrs["role"] == "img" and attrs["aria-label"])
    assert all(attrs["aria-label"] for attrs in reader.all("input"))
    assert reader.all("html")[0]["lang"] == "en"


def test_the_verdict_comes_first(html):
    text = " ".join("".join(Reader(html[: html.index('id="plots"')] + ">" and html).words).split())
    assert text.index("A fair comparison") < text.index("Better: error; worse: coarse; within noise: alike.")
    for word in ("▲ better", "▼ worse", "≈ within noise", "densify.grow.score error_max"):
        assert word in text


def test_a_page_of_the_same_runs_is_the_same(findings, html):
    assert page(findings) == html


def test_every_file_is_written(tmp_path, results):
    assert write(tmp_path, "A study", "adc", results) == tmp_path / "report.html"
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"report.html", "report.md", "results.csv", "report.tex"}
    assert (tmp_path / "report.html").stat().st_size < 3e6


def test_nothing_from_a_file_is_taken_for_markup(tmp_path):
    views = (f"{NASTY}.png",)
    known = {"scene": f"fox{NASTY}", "renders": False, "views": views}
    runs = [
        finished(tmp_path / "a", f"base{NASTY}", git=NASTY, protocol=NASTY, **known),
        finished(tmp_path / "b", f"'\"{NASTY}", config=settings(NASTY), **known),
    ]
    text = page(analyze(NASTY, f"base{NASTY}", runs, METRICS, NASTY, NASTY))
    assert NASTY not in text and text.count("<script>") == 1
    said = "".join(Reader(text).words)
    assert said.count(NASTY) > 10


def test_a_baseline_alone_is_a_page_too(tmp_path):
    run = finished(tmp_path, "adc")
    found = analyze("", "adc", [run], METRICS, "", "")
    assert "Nothing to compare." in page(found) and latex(found) and markdown(found) and results_csv(found)


def test_runs_without_seeds_are_too_few(tmp_path):
    runs = list(pair(tmp_path))
    text = page(analyze("", "adc", runs, METRICS, "", ""))
    assert "too few runs to tell" in text and 'class="interval' not in text


# pictures --------------------------------------------------------------------------------------------------


def opened(picture):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.data.partition(",")[2]))).convert("RGB"))


def test_the_view_and_the_part_that_differ_are_shown(tmp_path):
    config, spots = settings("size"), {VIEWS[1]: (230, 140)}
    runs = [
        finished(tmp_path / f"{name}{seed}", name, seed=seed, **more)
        for seed in (0, 1)
        for name, more in (("adc", {}), ("b", {"config": config, "spots": spots}))
    ]
    found = view_images.compare_views(analyze("", "adc", runs, METRICS, "", ""), Metric("psnr"))["b"]
    first = found[0]
    assert (first.view, first.seeds, len(found)) == (VIEWS[1], 2, 3) and first.difference < -0.3
    assert [crop.name for crop in first.crops] == ["truth", "adc", "b"]
    assert [view.name for view in first.views] == ["truth", "error of adc", "error of b", "nearer the truth"]
    before, after = (opened(crop).astype(int) for crop in first.crops[1:])
    assert (abs(before - after).mean(-1) > 30).sum() > 60 * 40 * 0.3  # the spot lies inside
    whole = opened(first.views[3])[150:170, 240:280].reshape(-1, 3).mean(0)
    assert whole[0] > 1.5 * whole[2]  # orange: the baseline is nearer
    truths = opened(first.crops[0])
    assert truths.shape == (192, 256, 3)
    full = np.round(255 * truth(1, 1))
    places = [(top, left) for top in range(HEIGHT - 191) for left in range(WIDTH - 255)]
    errors = [abs(full[top : top + 192, left : left + 256] - truths).mean() for top, left in places]
    assert min(errors) < 3


def test_scenes_take_turns(findings):
    for found in view_images.compare_views(findings, Metric("psnr")).values():
        assert [pair.scene for pair in found] == ["fox", "bonsai", "fox", "bonsai"]


def test_runs_without_renders_are_told(tmp_path):
    runs = list(pair(tmp_path))
    text = page(analyze("", "adc", runs, METRICS, "", ""))
    assert "adc / fox / seed 0 has no renders of it" in text and "splatexp.render run=" in text


def test_a_broken_picture_is_told(tmp_path):
    runs = [finished(tmp_path / "a", "adc"), finished(tmp_path / "b", "b", config=settings("size"))]
    for path in (tmp_path / "b" / "renders" / "plain").glob("*.png"):
        path.write_bytes(path.read_bytes()[:99])
    found = view_images.compare_views(analyze("", "adc", runs, METRICS, "", ""), Metric("psnr"))["b"]
    assert all(pair.reason and not pair.crops for pair in found)


def test_pictures_of_another_size_are_told(tmp_path):
    runs = [finished(tmp_path / "a", "adc"), finished(tmp_path / "b", "b", config=settings("size"))]
    for path in (tmp_path / "b" / "renders").rglob("*.png"):
        with Image.open(path) as picture:
            smaller = picture.resize((picture.width // 2, picture.height // 2))
        smaller.save(path)
    found = view_images.compare_views(analyze("", "adc", runs, METRICS, "", ""), Metric("psnr"))["b"]
    assert all("different size" in pair.reason for pair in found)


def test_what_is_masked_is_no_error(tmp_path):
    runs = [finished(tmp_path / "a", "adc"), finished(tmp_path / "b", "b", spots={VIEWS[0]: (10, 10)})]
    for run in runs:
        for view in run.views:
            view["masked"] = True
        sheet = run.folder / "renders" / "0001.png"
        with Image.open(sheet) as picture:
            drawn = picture.convert("RGB")
        drawn.paste(BACKGROUND, (drawn.width - WIDTH, 0, drawn.width, 80))
        drawn.save(sheet)
    truths, _, mask = view_images._open_render(runs[1], VIEWS[0])
    assert truths.shape == (HEIGHT, WIDTH, 3) and mask[:80].max() == 0 and mask[80:].min() == 1


@pytest.mark.parametrize("name", ["r_7.png", "test/r_7.png", "/a/b.c.jpg", "x", ".hidden", "a/.b"])
def test_a_view_has_the_file_that_it_was_saved_as(name):
    run = SimpleNamespace(folder=Path("f"))
    stem = View.stem.fget(SimpleNamespace(name=name))
    assert view_images._render_paths(run, name)[1].name == f"{stem}.png"


# plots -----------------------------------------------------------------------------------------------------


ENDS = [(0, 1, False), (-3e-4, 2e-4, False), (59999, 60001, False)]
ENDS += [(2e4, 9e5, True), (0.013, 0.6, True), (30.1, 30.2, True)]


@pytest.mark.parametrize("low, high, log", ENDS)
def test_ticks_lie_on_the_axis(low, high, log):
    scale = svg_plot.fit_scale([low, high], 0, 100, log)
    ticks = scale.ticks()
    assert 2 <= len(ticks) <= 8 and all(0 <= scale(value) <= 100 for value in ticks)
    assert 0 < scale(low) < scale(high) < 100


def test_one_value_has_an_axis_too():
    for value in (0.0, 60000.0, -2.0):
        scale = svg_plot.fit_scale([value], 0, 100)
        assert 0 < scale(value) < 100 and scale.ticks()


def test_labels_do_not_touch():
    x, y = svg_plot.Scale(0, 1, 40, 340), svg_plot.Scale(0, 1, 200, 10)
    panel = svg_plot.Panel("", x, y, "", 360, 240)
    for index in range(30):
        panel.point(index, index / 30, 0.5, "")
    for index in range(30):
        panel.label(index, index / 30, 0.5, "a long name")
    boxes = panel.taken
    labels = boxes[30:]
    assert 2 <= len(labels) < 30
    for index, box in enumerate(labels):
        assert svg_plot._clear(box, boxes[:30] + labels[:index])


def test_an_interval_beyond_the_axis_ends_in_an_arrow():
    inside, beyond = (svg_plot.interval_bar(low, 0, 0.5, 1, "noise", "") for low in (-0.5, -5))
    assert "M8,8L2,13L8,18" in beyond and "M8,8L2,13L8,18" not in inside
    assert "<circle" not in svg_plot.interval_bar(2, 3, 4, 1, "better", "")


def test_numbers_on_an_axis():
    assert [svg_plot.format_tick(v) for v in (60000, 1.5e6, -0.25, 9999, 0)] == [
        "60k",
        "1.5M",
        "−0.25",
        "9999",
        "0",
    ]
