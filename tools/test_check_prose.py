"""The checker of prose sees what it is meant to see."""

from pathlib import Path

import check_prose


def found(text, page="docs/page.md"):
    return [fault for _, fault in check_prose.faults(page, text)]


def test_replaced_words_are_found_outside_of_code():
    assert found("The record is refused.") == ["'refused'; write: reject"]
    assert found("It goes on behind the gap.") == ["'goes on'; write: continue, resume"]
    assert found("800 documents a second") == ["'documents a second'; write: /s"]
    assert found("A dead letter, a dead-letter topic, the high watermark.") == []
    assert found("Connection refused") == []
    assert found("```text\nrefused\n```\nsound") == []
    assert found("`the worker answered` is a message") == []


def test_long_lines_and_sentences_are_found():
    assert found("word " * 25) == ["125 columns; at most 100"]
    assert found("| " + "cell " * 30 + "|") == []
    long = "\n".join(["ten words stand in each of these lines of prose"] * 5)
    assert found(long + ".") == ["a sentence of 50 words; at most 40"]
    assert found(long.replace("prose", "prose.", 1) + ".") == []
    assert found("- " + long.replace("\n", "\n- ")) == []


def test_links_that_lead_nowhere_are_found(tmp_path):
    page = tmp_path / "page.md"
    (tmp_path / "there.md").touch()
    text = "[a](there.md#part) [b](missing.md) [c](https://example.org) [d](#here)"
    assert list(check_prose.broken_links(Path(page), text)) == [(1, "missing.md leads nowhere")]
