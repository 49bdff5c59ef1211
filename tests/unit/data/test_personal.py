"""Personal data: what is found, what only looks like it, and a copy without it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from finetune.cli import main
from finetune.config import TextClassificationData
from finetune.data.loader import load_data
from finetune.data.personal import redacted

pytestmark = pytest.mark.unit

# Numbers that their issuers publish as examples.
FINDS = [
    ("write to jane.doe+news@mail.example.co.uk!", "write to [e-mail]!"),
    ("call +49 30 1234567 today", "call [phone number] today"),
    ("call (020) 7946 0958", "call [phone number]"),
    ("555-123-4567, or not", "[phone number], or not"),
    ("+4915112345678", "[phone number]"),
    ("+1 (415) 555-2671 or +33142685300", "[phone number] or [phone number]"),
    ("my card is 4111 1111 1111 1111.", "my card is [payment card]."),
    ("amex 378282246310005", "amex [payment card]"),
    ("IBAN DE89 3704 0044 0532 0130 00, thanks", "IBAN [IBAN], thanks"),
    ("GB82WEST12345698765432", "[IBAN]"),
    ("host 192.168.10.254 is down", "host [IP address] is down"),
    ("host 2001:db8:0:0:0:ff00:42:8329 too", "host [IP address] too"),
    ("key AKIAIOSFODNN7EXAMPLE leaked", "key [key] leaked"),
    ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY----- end", "[key] end"),
]
LOOKALIKES = [
    "4111 1111 1111 1112 fails Luhn's check",
    "0000 0000 0000 0000",
    "DE89 3704 0044 0532 0130 01 has another remainder",
    "+99 123 456 78 is of no country, +1234567 too short for its own",
    "DE16 3704 0044 is too short for a German account",
    "version 1.2.3.4000 of 999.1.1.1",
    "on 2024-05-17, and 17.05.2024, and 1939-1945",
    "in 1999 it cost 1,299.95 for 12 345 of them",
    "the ratio 3:2:1, at 12:30:45",
    "me@home and @everyone and a@b",
    "chapter 12-34",
    "3.14159265358979 and 0.4111111111111111",
]


@pytest.mark.parametrize(("text", "expected"), FINDS)
def test_what_has_a_form_is_found(text: str, expected: str) -> None:
    assert redacted(text) == expected


@pytest.mark.parametrize("text", LOOKALIKES)
def test_what_only_looks_like_it_stays(text: str) -> None:
    assert redacted(text) == text


def test_counts_places_and_a_copy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        '"good, ask jane@example.org",yes,7',
        "nothing here,no,8",
        '"call 555-123-4567 or joe@example.org\nor 555-123-9999",no,9',
    ]
    path, out = tmp_path / "rows.csv", tmp_path / "clean.jsonl"
    path.write_text("text,label,note\n" + "".join(f"{row}\n" for row in rows * 12))
    assert main(["data", "check", str(path), "--redact", str(out)]) == 2
    main(["data", "check", str(path), "--pii", "--redact", str(out)])
    printed = capsys.readouterr().out
    assert "24 rows with 24 x e-mail, 24 x phone number" in printed
    assert "e-mail: rows.csv, line 2, rows.csv, line 4, rows.csv, line 6" in printed
    assert "example.org" not in printed.split("personal data")[1]
    copy = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert copy[:3] == [
        {"text": "good, ask [e-mail]", "label": "yes", "note": "7"},
        {"text": "nothing here", "label": "no", "note": "8"},
        {"text": "call [phone number] or [e-mail]\nor [phone number]", "label": "no", "note": "9"},
    ]
    assert main(["data", "check", str(path), "--pii", "--redact", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert "none that has a form" in _checked(out, capsys)


def test_runs_and_cards_say_what_was_taken_out_of_their_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    path, out = tmp_path / "rows.csv", tmp_path / "clean.jsonl"
    rows = [f"film number {number} was {label} says jane@example.org,{label}" for number in range(40) for label in "ab"]
    path.write_text("text,label\n" + "".join(f"{row}\n" for row in rows))

    def notes(source: Path) -> str:
        settings = TextClassificationData(source=str(source))
        return " ".join(load_data(settings, {"text": "text", "label": "label"}).notes)

    def card(source: Path) -> str:
        assert main(["data", "card", str(source)]) == 0
        return capsys.readouterr().out.split("## Personal data")[1]

    assert "personal" not in notes(path)
    assert "Nobody has taken personal data out of it" in card(path)
    main(["data", "check", str(path), "--pii", "--redact", str(out)])
    capsys.readouterr()
    said = "taken out of this copy (finetune data check --pii --redact): 80 x e-mail"
    assert said in notes(out)
    assert said in card(out)
    out.write_text(out.read_text() + '{"text": "call joe@example.org", "label": "a"}\n')
    assert "changed after personal data had been taken out" in notes(out)
    assert "taken out of this copy" not in notes(out) + card(out)


def _checked(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    main(["data", "check", str(path), "--pii"])
    return capsys.readouterr().out
