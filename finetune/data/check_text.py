"""The report of `finetune data check` as it is printed."""

from __future__ import annotations

from finetune.data.checks import CheckReport


def as_text(report: CheckReport, fate: str) -> str:
    """The report in lines.

    Args:
        fate: what a run does with rows above the limit, as a verb: are longer than.
    """
    measured, lengths = report.measured, report.lengths
    total = sum(measured.rows.values())
    lines = [
        f"{report.name}: {total:,} rows ({', '.join(f'{split} {count:,}' for split, count in measured.rows.items())})",
        f"sha256 {report.sha256}",
        "",
    ]
    if measured.label_counts:
        ratio = f", largest to smallest {report.imbalance:g} : 1" if report.imbalance else ""
        of_words = report.kind == "words with tags"
        what, head = ("types of entities", "type") if of_words else ("labels", "label")
        counted = sum(sum(counts.values()) for counts in measured.label_counts.values())
        lines.append(f"{len(measured.label_counts)} {what}{ratio}")
        width = max(5, *(len(label) for label in measured.label_counts))
        cut = f" over {lengths.limit}" if lengths.truncated_by_label else ""
        lines.append(f"  {head:<{width}}  {'train':>8} {'valid':>8} {'test':>8}   share{cut:>11}")
        for label, counts in measured.label_counts.items():
            share = sum(counts.values()) / counted if counted else 0.0
            truncated = lengths.truncated_by_label.get(label)
            tail = f"{truncated:>11.1%}" if truncated is not None else ""
            numbers = " ".join(f"{counts[split]:>8,}" for split in ("train", "valid", "test"))
            lines.append(f"  {label:<{width}}  {numbers}  {share:>6.1%}{tail}")
        lines.append("")
    duplicates = measured.duplicates
    lines += [
        f"duplicates         {duplicates.exact:,} exact, {duplicates.normalised:,} after normalising case and space",
        f"conflicting labels {duplicates.conflicting:,} rows whose text also stands under another label",
        f"cross-split rows   {', '.join(f'{split} {count:,}' for split, count in measured.leaks.items())}",
        f"left out           {report.dropped:,} by the card's label rule",
        f"length in {lengths.unit:<8} " + ", ".join(f"{name} {value:,}" for name, value in lengths.percentiles.items()),
    ]
    if lengths.truncated is not None:
        over = f"{lengths.truncated:.2%} of rows {fate} {lengths.limit} {lengths.unit}"
        lines.append(f"truncated          {over}")
    elif lengths.unit == "tokens":
        lines.append("truncated          none: longer texts are cut into blocks, and no token is left out")
    else:
        lines.append("truncated          unknown: tokens were not counted")
    lines += ["", *(f"note: {note}" for note in report.notes)]
    for kind, (count, first) in report.problems.items():
        lines.append(f"problem: {count:,} x {kind}")
        lines += [f"  {message}".replace("\n", "\n  ") for message in first]
    lines.append("A run would refuse this data." if report.problems else "A run can train on this data.")
    return "\n".join(lines)
