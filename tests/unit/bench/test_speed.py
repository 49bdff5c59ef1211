"""`finetune bench speed`: statistics, documents, what is refused, and what a stopped session goes on with."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune.bench.speed import plans
from finetune.bench.speed import session as sessions
from finetune.bench.speed.plans import parse_plan
from finetune.bench.speed.rows import BEST, DEFAULT, OURS, ROWS, Row, chosen
from finetune.bench.speed.session import Session, peers_program, refuse_busy
from finetune.bench.speed.starting import until_first_update
from finetune.bench.speed.summary import documents, ratios, spread, summary, write_readme
from finetune.bench.speed.useful import Products
from finetune.cli import main
from finetune.errors import ConfigError
from finetune.low_rank import fast_lora

pytestmark = pytest.mark.unit

ROW = ROWS[0]


def found(seconds: float, memory: float = 1000.0, precision: str = "bf16") -> dict[str, Any]:
    return {"seconds": seconds, "examples": 100, "tokens": 2000, "peak_rss_mb": memory, "precision": precision}


def write_records(
    session: Session, times: dict[str, list[float]], commit: str | None = None, precision: str = "bf16"
) -> None:
    for side, seconds in times.items():
        for pair, some in enumerate(seconds):
            path = session.folder / "records" / ROW.name / f"{pair}-{side}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            content = {
                "side": side, "pair": pair, "found": found(some, precision=precision),
                "cpu_used_by_others": 0.0, "busy_load": session.busy, "commit": commit or session.commit,
                "key": {**session.machine, **session._settings(ROW)},
            }  # fmt: skip
            path.write_text(json.dumps(content))


def test_a_ratio_is_the_median_over_pairs_with_its_ends() -> None:
    ours = {pair: found(seconds) for pair, seconds in enumerate((1.0, 2.0, 1.0))}
    peer = {pair: found(seconds) for pair, seconds in enumerate((3.0, 8.0, 5.0, 9.0))}
    ratio = ratios(ours, peer)
    assert ratio is not None
    quotients = np.array([3.0, 4.0, 5.0])  # of the pairs that are whole
    assert (ratio.median, ratio.low, ratio.high, ratio.count) == (np.median(quotients), 3.0, 5.0, 3)
    assert ratios(ours, {}) is None
    # Twice the tokens in as many rows: half as long for each. Sides that count none are compared by rows.
    longer = {0: {**found(3.0), "tokens": 4000}}
    assert ratios(ours, longer) == spread([1.5])
    assert ratios(ours, {0: {**found(3.0), "tokens": 0}}) == spread([3.0])
    assert spread([2.0, 1.0]).text(".1f") == "1.5 [1.0, 2.0]"


def test_documents_say_where_a_peer_is_ahead(tmp_path: Path) -> None:
    write_records(
        Session(tmp_path, 3, None, busy=1.5), {OURS: [1.0] * 3, DEFAULT: [4.0, 6.0, 7.0], BEST: [0.8, 0.9, 1.1]}
    )
    text = documents(tmp_path)
    assert "| 6.00 [4.00, 7.00] | 5 |" in text
    assert "**the peer best flags is faster**, 0.90 times" in text
    assert "**Not a quiet machine:** the load average was up to 1.50" in text
    row = json.loads((tmp_path / "speed.json").read_text())["rows"][ROW.name]
    expected = {"goal": 5.0, "median": 6.0, "low": 4.0, "high": 7.0, "pairs": 3}
    assert row["ratios"][DEFAULT] == pytest.approx(expected)
    assert row["sides"][OURS]["rows_per_s"]["median"] == 100.0
    assert (tmp_path / "speed.png").stat().st_size > 1000


def test_useful_work_is_that_of_the_median_pair(tmp_path: Path) -> None:
    # torch.mm was once timed at half of its rate; one such moment must not become the row's share.
    session = Session(tmp_path, 3, None)
    write_records(session, {OURS: [1.0] * 3, DEFAULT: [4.0] * 3, BEST: [2.0] * 3})
    for pair, reached in enumerate((200.0, 400.0, 380.0)):
        path = tmp_path / "records" / ROW.name / f"{pair}-{OURS}.json"
        record = json.loads(path.read_text())
        record["found"]["useful"] = {"useful_gflops": 160.0, "mm_gflops": reached, "share": 160.0 / reached}
        path.write_text(json.dumps(record))
    assert summary(tmp_path)["rows"][ROW.name]["useful"]["mm_gflops"] == 380.0
    assert "| 160 | 380 | 42% | 65% |" in documents(tmp_path)


def test_the_readme_gets_its_table_between_its_marks_and_none_of_a_busy_machine(tmp_path: Path) -> None:
    write_records(Session(tmp_path, 1, None, busy=1.0), {OURS: [1.0], DEFAULT: [6.0], BEST: [2.0]})
    readme = tmp_path / "README.md"
    others = "<!-- speed without bf16: begin -->\nof another machine\n<!-- speed without bf16: end -->"
    readme.write_text(f"before\n<!-- speed: begin -->\nold\n<!-- speed: end -->\n{others}\nafter\n")
    with pytest.raises(ConfigError, match="busy machine"):
        write_readme(readme, summary(tmp_path))
    write_records(Session(tmp_path, 1, None), {OURS: [1.0], DEFAULT: [6.0], BEST: [2.0]})
    write_readme(readme, summary(tmp_path))
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith(f"\n{others}\nafter\n")
    assert "old" not in text
    assert "| 6.00 [6.00, 6.00] (goal 5) | 2.00 [2.00, 2.00] (goal 1.5) |" in text
    readme.write_text("no marks")
    with pytest.raises(ConfigError, match="has no marks"):
        write_readme(readme, summary(tmp_path))


def test_a_machine_without_bf16_has_a_table_of_its_own(tmp_path: Path) -> None:
    write_records(Session(tmp_path, 1, None), {OURS: [1.0], DEFAULT: [2.0], BEST: [1.5]}, precision="fp32")
    readme = tmp_path / "README.md"
    quick = "<!-- speed: begin -->\nwith bf16\n<!-- speed: end -->\n"
    readme.write_text(f"{quick}<!-- speed without bf16: begin -->\nold\n<!-- speed without bf16: end -->\n")
    write_readme(readme, summary(tmp_path))
    text = readme.read_text()
    assert text.startswith(f"{quick}<!-- speed without bf16: begin -->\n| work |")
    assert "old" not in text


def test_a_stopped_session_measures_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole pairs: its sides one right after the other are what makes a pair."""
    session = Session(tmp_path, 3, None)
    write_records(session, {OURS: [1.0, 1.0], DEFAULT: [2.0, 2.0], BEST: [2.0]})
    half = [tmp_path / "records" / ROW.name / f"1-{side}.json" for side in (OURS, DEFAULT)]
    done: list[tuple[int, str]] = []

    def side(self: Session, row: Row, side: str, number: int, path: Path) -> None:
        assert not any(path.exists() for path in half)  # nobody takes the half for a part of the new pair
        done.append((number, side))

    monkeypatch.setattr(Session, "_side", side)
    session.run([ROW], [])
    # From the one end and the other, in turn.
    assert done == [(1, BEST), (1, DEFAULT), (1, OURS), (2, OURS), (2, DEFAULT), (2, BEST)]


def test_a_row_may_have_fewer_pairs_than_the_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[int, str]] = []
    monkeypatch.setattr(Session, "_side", lambda self, row, side, number, path: done.append((number, row.name)))
    Session(tmp_path, 3, None).run([replace(ROW, most_pairs=2), replace(ROW, name="other", most_pairs=0)], [])
    assert [sum(name == some for _, some in done) for name in (ROW.name, "other")] == [2 * 3, 3 * 3]


def test_half_a_row_of_another_commit_is_measured_anew_and_a_whole_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(tmp_path, 1, None)
    done: list[str] = []
    monkeypatch.setattr(Session, "_side", lambda self, row, side, number, path: done.append(side))
    write_records(session, {OURS: [1.0], DEFAULT: [2.0]}, commit="earlier")
    session.run([ROW], [])
    assert done == [OURS, DEFAULT, BEST]
    write_records(session, {OURS: [1.0], DEFAULT: [2.0], BEST: [2.0]}, commit="earlier")
    session.run([ROW], [])
    assert len(done) == 3


def test_records_of_other_settings_are_refused(tmp_path: Path) -> None:
    write_records(Session(tmp_path, 1, None), {OURS: [1.0]})
    Session(tmp_path, 1, None).check([ROW])
    with pytest.raises(ConfigError, match=r"0-finetune.json was measured with updates 60 \(now 3\)"):
        Session(tmp_path, 1, 3).check([ROW])


def test_a_busy_machine_and_an_installed_package_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions.os, "getloadavg", lambda: (1.7, 0.0, 0.0))
    with pytest.raises(ConfigError, match=r"load average 1.70.*\n.*--busy"):
        refuse_busy(allowed=False)
    assert refuse_busy(allowed=True) == 1.7
    assert peers_program().is_file()
    monkeypatch.setattr(sessions, "recipes_folder", lambda: tmp_path / "_recipes")
    with pytest.raises(ConfigError, match="not in an installed package"):
        peers_program()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--rows", "bert_ful"], "Did you mean bert_full?"),
        (["--rows", ","], "--rows names none"),
        (["--pairs", "0"], "--pairs 0 is none"),
        (["--updates", "-1"], "--updates -1 is none"),
    ],
)
def test_wrong_flags_are_one_message(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "speed", *flags]) == 2
    assert said in capsys.readouterr().err


def test_rows_have_names_of_their_own_and_keep_their_order() -> None:
    assert len(ROWS) == len({row.name for row in ROWS}) == 9
    rows, singles = chosen("starting,few_shot,bert_full")
    assert [row.name for row in rows] == ["bert_full", "few_shot"]
    assert singles == ["starting"]


def test_useful_work_counts_real_tokens_of_every_product_that_is_needed() -> None:
    class Model(torch.nn.Module):
        config = type(
            "Config", (), {"model_type": "bert", "num_attention_heads": 2, "hidden_size": 64, "num_hidden_layers": 3}
        )

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Linear(64, 128), torch.nn.Linear(128, 64)
            self.second.requires_grad_(False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x))

    model = Model()
    products = Products(model)
    model(torch.randn(10, 10, 64))  # 100 places
    products.stop()
    model(torch.randn(10, 10, 64))
    # Forward both; backward the weight's gradient of the first, and the input's of the second: four products.
    linear, attention = 4 * 2 * 64 * 128 * 50, 3 * 3 * 2 * (2 * 5 * 5 * 64) * 10
    got = products.useful(tokens=50, lengths=[5] * 10, seconds=2.0)
    assert got["useful_gflops"] == pytest.approx((linear + attention) / 2.0 / 1e9)
    assert got["share"] == pytest.approx(got["useful_gflops"] / got["mm_gflops"])
    # A layer that computes one token of a row: its one query looks at five keys.
    got = products.useful(tokens=50, lengths=[5] * 10, seconds=2.0, one_token_layers=1)
    attention = (2 * 5 + 1) * 3 * 2 * (2 * 5 * 64) * 10
    assert got["useful_gflops"] == pytest.approx((linear + attention) / 2.0 / 1e9)


def test_useful_work_of_a_layer_that_sees_fewer_rows_is_that_of_those_rows() -> None:
    class Model(torch.nn.Module):
        config = type(
            "Config", (), {"model_type": "bert", "num_attention_heads": 2, "hidden_size": 64, "num_hidden_layers": 0}
        )

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x)[:, :1])

    products = Products(model := Model())
    model(torch.randn(10, 8, 64))  # 80 places for the first, 10 for the second
    got = products.useful(tokens=40, lengths=[4] * 10, seconds=1.0)
    # The first without its padding; the second, whose input has a gradient too, in the same proportion.
    assert got["useful_gflops"] == pytest.approx((2 * 2 * 80 + 3 * 2 * 10) * 64 * 64 / 2 / 1e9)


def test_products_of_an_adapted_layer_are_counted_however_it_computes_them() -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(64, 96)), LoraConfig(r=4, target_modules=["0"]))
    x, counted = torch.randn(80, 64), []
    for wanted in (False, True):
        products = Products(model)
        with torch.autocast("cpu", torch.bfloat16), fast_lora(torch.device("cpu"), wanted):
            model(x)
            model(x)
        products.stop()
        counted.append(products.calls)
    parts = {(80, 64, 96, False, False), (80, 64, 4, False, True), (80, 4, 96, True, True)}
    assert counted[0] == counted[1] == dict.fromkeys(parts, 2)


def test_a_plan_is_read_as_it_is_printed() -> None:
    text = (
        "updates     30 of 16 rows\ntraining    about 3 min 44 s, from 8 timed updates\n"
        "evaluation  about 12 s, 2 times on the 850 validation rows\nmemory      about 1.5 GiB of 24 GiB\n"
    )
    assert parse_plan(text) == {"training": 224.0, "evaluation": 12.0, "memory": 1536.0}


def test_short_plans_are_compared_over_more_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan is of a whole training; of one of seconds, saving alone is a tenth."""
    called: list[tuple[str, str]] = []

    def command(*arguments: str) -> str:
        (count,) = (word.partition("=")[2] for word in arguments if word.startswith("train.max_updates="))
        called.append((arguments[0], count))
        if arguments[0] == "run":
            record = {"updates": int(count), "timing": {"train_s": 25.5}, "peak_rss_mb": 1700.0}
            (Path(arguments[-1])).mkdir()
            (Path(arguments[-1]) / "run.json").write_text(json.dumps(record))
        return (
            f"training    about {int(count) / 7.5:.1f} s, from 8 timed updates\nevaluation  about 1.0 s, 1 times\n"
            "memory      about 1.5 GiB of 24 GiB\n"
        )

    monkeypatch.setattr(plans, "_finetune", command)
    found = plans.compare_plan("bert_cls", None)
    assert called == [("plan", "30"), ("plan", "120"), ("run", "120")]  # 5 s, so four times as many
    assert found == {"updates": 120, "predicted_s": 17.0, "real_s": 25.5, "predicted_mb": 1536.0, "real_mb": 1700.0}
    called.clear()
    plans.compare_plan("bert_cls", 30)  # as asked
    assert called == [("plan", "30"), ("run", "30")]


def test_nothing_is_made_up_without_records(tmp_path: Path) -> None:
    assert summary(tmp_path) == {"rows": {}, "starting": {}, "plans": {}, "data": [], "busy_load": 0.0}


def test_a_start_is_timed_where_bytecode_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    run = (
        "import sys, time; from pathlib import Path; folder = Path(sys.argv[-1]); folder.mkdir(parents=True)\n"
        "if sys.dont_write_bytecode: sys.exit('compiled in vain')\n"
        "(folder / 'history.jsonl').touch(); time.sleep(60)"
    )
    assert 0 < until_first_update([sys.executable, "-c", run]) < 50
