"""`finetune calibrate` and `finetune risk-coverage`: how far a finished classifier's probabilities can be trusted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from finetune.errors import DataError
from finetune.evaluation.calibration import (
    COLDEST,
    HOTTEST,
    TITLES,
    aurc,
    calibration_changes,
    fit_temperature,
    reliability,
    risk_coverage,
    scaled,
)
from finetune.evaluation.intervals import Floats, Ints, bootstrap, exact_share_interval, percentile_interval
from finetune.files import whole_file, write_json
from finetune.report.summary import clean, cut
from finetune.run_folder import read_record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FILES = {"valid": "predictions_valid.parquet", "test": "predictions.parquet"}
COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)
GREY, BLUE, ORANGE = "#7F7F7F", "#0072B2", "#D55E00"


class Answers(NamedTuple):
    """A classifier's probabilities, [rows, classes], and the true class indices, [rows]."""

    probabilities: Floats
    labels: Ints


def read_answers(run: Path, record: dict[str, Any], split: str) -> Answers:
    """The stored probabilities of a split.

    Raises:
        DataError: the run is not completed, is no classifier's, or kept no answers of that split.
    """
    import pyarrow
    import pyarrow.parquet

    if record["status"] != "completed":
        raise DataError(f"{run} is {record['status']}, not completed.", f"Finish it: finetune run --resume {run}")
    path, names = run / FILES[split], list(record["data"]["labels"])
    if split == "valid" and not path.is_file():
        raise DataError(
            f"{path} is not there: the run is no classifier's, or was made before validation answers were kept.",
            f"Make it again: finetune replay {run} --output NEW",
        )
    try:
        columns = pyarrow.parquet.read_table(path).to_pydict()
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise DataError(f"{path} can't be read: {str(error).splitlines()[0]}", "Run it again.") from None
    if "probabilities" not in columns or not columns["probabilities"]:
        raise DataError(f"{path} holds no probabilities.", "Only classifiers can be calibrated.")
    if not set(columns["label"]) <= set(names) or {len(row) for row in columns["probabilities"]} != {len(names)}:
        raise DataError(f"{path} has other labels than run.json.", "One of them was changed.")
    labels = np.array([names.index(name) for name in columns["label"]], dtype=np.int64)
    return Answers(np.asarray(columns["probabilities"], dtype=np.float64), labels)


def calibrate(run: str) -> int:
    """Fit a temperature on validation rows, say what it changes on test rows, write calibration.json and .png.

    Raises:
        ConfigError, DataError: no run, or one without a classifier's answers.
    """
    folder = Path(run)
    record = read_record(folder)
    valid, test = (read_answers(folder, record, split) for split in ("valid", "test"))
    temperature = fit_temperature(*valid)
    after = scaled(test.probabilities, temperature)
    changes = calibration_changes(test.probabilities, after, test.labels, record["seed"])
    print(f"{clean(record['data']['card'])} test, {len(test.labels):,} rows; 95 % intervals in brackets")
    print(f"temperature {temperature:.3f}, fitted on {len(valid.labels):,} validation rows\n")
    print(f"{'':<20}{'as it is':<26}{'scaled':<26}change")
    for name, change in changes.items():
        cells = [f"{some.value:.4f} [{some.low:.4f}, {some.high:.4f}]" for some in change[:2]]
        difference = f"{change.change.value:+.4f} [{change.change.low:+.4f}, {change.change.high:+.4f}]"
        print(f"{TITLES[name]:<20}{cells[0]:<26}{cells[1]:<26}{difference}")
    print("\nNo prediction changes: divide the logits by the temperature before the softmax, or raise each probability")
    print("to the power of 1 / temperature and divide by their sum.")
    if not COLDEST * 1.01 < temperature < HOTTEST / 1.01:
        print(f"The fit ended at its bound, {temperature:.3g}: these validation rows can't tell a temperature.")
    print("The intervals are over test rows; the temperature itself would differ with other validation rows.")
    write_json(
        folder / "calibration.json",
        {
            "temperature": temperature,
            "validation_rows": len(valid.labels),
            **{
                name: {part: some.as_dict() for part, some in zip(change._fields, change, strict=True)}
                for name, change in changes.items()
            },
        },
    )
    _draw(folder / "calibration.png", lambda axes: _reliability(axes, record, test, after, temperature))
    print(f"\n{folder / 'calibration.json'}, {folder / 'calibration.png'}")
    return 0


def print_risk_coverage(run: str) -> int:
    """Print the risk at some coverages, with thresholds from validation rows, and AURC; write risk_coverage.png.

    Raises:
        ConfigError, DataError: as `calibrate`.
    """
    folder = Path(run)
    record = read_record(folder)
    valid, test = (read_answers(folder, record, split) for split in ("valid", "test"))
    wrong = (test.probabilities.argmax(axis=1) != test.labels).astype(np.float64)
    surest, seed = test.probabilities.max(axis=1), record["seed"]
    area = aurc(surest, wrong, seed)
    best = float(np.mean(risk_coverage(-wrong, wrong)))
    print(f"{clean(record['data']['card'])} test, {len(wrong):,} rows; 95 % intervals in brackets\n")
    print(f"{'answered':<10}{'when sure by':<14}{'of the test rows':<18}{'wrong among them':<26}rows")
    for coverage in COVERAGES:
        # From validation rows: a threshold that is chosen on the test rows would look better than it is.
        bound = float(np.quantile(valid.probabilities.max(axis=1), 1 - coverage)) if coverage < 1 else 0.0
        inside = surest >= bound
        print(f"{coverage:<10.0%}{bound:<14.3f}{inside.mean():<18.1%}{_share(wrong[inside], seed):<26}{inside.sum():,}")
    print(f"\nAURC {area.value:.4f} [{area.low:.4f}, {area.high:.4f}]: the share of wrong answers, averaged over all")
    print(f"coverages, the surest first. In random order {wrong.mean():.4f}; with every wrong answer last {best:.4f}.")
    _draw(folder / "risk_coverage.png", lambda axes: _risk(axes, record, surest, wrong))
    print(f"\n{folder / 'risk_coverage.png'}")
    return 0


def _share(wrong: Floats, seed: int) -> str:
    if not len(wrong):
        return "no rows"
    if wrong.all() or not wrong.any():
        low, high = exact_share_interval(int(wrong.sum()), len(wrong))
    else:
        found = bootstrap(lambda rows_of: {"it": wrong[rows_of].mean(axis=1)}, len(wrong), seed)
        low, high = percentile_interval(found["it"])
    return f"{wrong.mean():.3f} [{low:.3f}, {high:.3f}]"


def _draw(path: Path, draw: Any) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    draw(axes)
    axes.grid(alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=130, metadata={"Software": None})


def _reliability(axes: Axes, record: dict[str, Any], test: Answers, after: Floats, temperature: float) -> None:
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, label="calibrated")
    for some, colour, mark, name in (
        (test.probabilities, ORANGE, "o", "as it is"),
        (after, BLUE, "s", f"temperature {temperature:.2f}"),
    ):
        confidence, right, rows = zip(*reliability(some, test.labels), strict=True)
        axes.plot(confidence, right, color=colour, linewidth=1.2, alpha=0.6)
        # The area says how many rows a point stands for.
        axes.scatter(confidence, right, s=10 + 300 * np.array(rows) / sum(rows), color=colour, marker=mark, label=name)
    axes.set(xlabel="confidence", ylabel="share that is right", xlim=(0.9 / len(record["data"]["labels"]), 1.01))
    axes.set_title(cut(f"{clean(record['data']['card'])}, {len(test.labels):,} test rows", 52), parse_math=False)
    legend = axes.legend()
    for handle in legend.legend_handles:
        if handle is not None and hasattr(handle, "set_sizes"):
            handle.set_sizes([40])


def _risk(axes: Axes, record: dict[str, Any], surest: Floats, wrong: Floats) -> None:
    shares = np.arange(1, len(wrong) + 1) / len(wrong)
    axes.plot(shares, risk_coverage(surest, wrong), color=BLUE, label="the surest first")
    axes.plot(shares, risk_coverage(-wrong, wrong), color=GREY, linestyle=":", label="every wrong answer last")
    axes.axhline(float(wrong.mean()), color=GREY, linestyle="--", linewidth=1, label="random order")
    axes.set(xlabel="share of rows answered (coverage)", ylabel="wrong among them (risk)", xlim=(0, 1))
    axes.set_ylim(bottom=0)
    axes.set_title(cut(f"{clean(record['data']['card'])}, {len(wrong):,} test rows", 52), parse_math=False)
    axes.legend()
