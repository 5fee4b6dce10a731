"""Checks the documentation: words that have been replaced, long sentences, long lines.

    python3 tools/check_prose.py [FILE ...]

Prints `file:line: what is wrong` for each fault and ends with 1 where there is one. Without arguments it
checks every page of the repository. Knows Markdown as far as the pages use it; must not know what they say.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["*.md", "docs/**/*.md", "benches/*.md", "docker/**/*.md", "models/**/*.md", "samples/*.md"]

MOST_COLUMNS = 100
MOST_WORDS = 40

# Word, what to write instead.
REPLACED = [
    (r"(?<!dead )(?<!dead-)letters?(?! or digit)(?!, digits)", "dead letter"),
    (r"refus(?:e|es|ed|al|als|ing)", "reject"),
    (r"answer(?:s|ed|ing)?", "prediction, response"),
    (r"opinions?", "prediction"),
    (r"(?:go|goes|going|gone|went) on", "continue, resume"),
    (r"anew", "again, retry"),
    (r"mend(?:s|ed|ing)?", "fix, repair"),
    (r"(?<!high )watermarks?", "offset tracker"),
    (r"desks?", "assigned partitions"),
    (r"under way", "in flight"),
    (r"processors?", "CPU"),
    (r"(?:records|documents|titles|texts|points|tokens|messages|batches|bytes|KB|MB|GB|MiB|GiB) a second", "/s"),
    (r"twins?|lent", "fake, stub, scripted"),
]

# (page, what its line holds): names of files and messages as they are, and words in another sense.
EXCEPTIONS = [
    ("", r"[Cc]onnection refused|refuses the connection"),
    ("", r"`[^`]*\b(?:watermark|letters?|answered|refuses?|answer|mend)\b[^`]*`"),
    ("docs/internals/label-words.md", r"letters"),
]


def lines_of_prose(text):
    """Numbers and lines outside of code blocks; a fence may be indented."""
    fence = None
    for number, line in enumerate(text.splitlines(), 1):
        mark = re.match(r"\s*(```+|~~~+)", line)
        if mark and (fence is None or line.strip() == fence):
            fence = None if fence else mark.group(1)
        elif fence is None:
            yield number, line


def sentences(text):
    """Number of the first line, and text, of each sentence; tables and headings are none."""
    words, first = [], None
    for number, line in [*lines_of_prose(text), (0, "")]:
        bare = line.strip()
        if not bare or bare.startswith(("|", "#", "<")) or re.match(r"([-*+]|\d+\.) ", bare):
            if words:
                yield first, " ".join(words)
            words, first = [], None
            if not bare or bare.startswith(("|", "#", "<")):
                continue
            bare = re.sub(r"^([-*+]|\d+\.) ", "", bare)
        for word in bare.split():
            if first is None:
                first = number
            words.append(word)
            if re.search(r"[.!?:;][)\"”*`]*$", word) and not re.search(r"\b(e\.g|i\.e|etc|vs)\.$", word):
                yield first, " ".join(words)
                words, first = [], None


def is_excepted(page, line):
    return any(page.startswith(home) and re.search(holds, line) for home, holds in EXCEPTIONS)


def faults(page, text):
    """What is wrong in the text of a page, as (line, fault)."""
    for number, line in lines_of_prose(text):
        is_table = line.lstrip().startswith("|")
        is_link = re.search(r"\S{60,}", line) is not None
        if len(line) > MOST_COLUMNS and not is_table and not is_link:
            yield number, f"{len(line)} columns; at most {MOST_COLUMNS}"
        for word, instead in REPLACED:
            found = re.search(rf"\b(?:{word})\b", line, re.IGNORECASE)
            if found and not is_excepted(page, line):
                yield number, f"{found.group(0)!r}; write: {instead}"
    for number, sentence in sentences(text):
        words = len(re.findall(r"\w[\w'’.-]*", sentence))
        if words > MOST_WORDS:
            yield number, f"a sentence of {words} words; at most {MOST_WORDS}"


def broken_links(page, text):
    """Relative links of a page that lead to no file, as (line, fault)."""
    for number, line in lines_of_prose(text):
        for target in re.findall(r"\]\(([^)\s]+)\)", line):
            path = target.split("#")[0]
            if path and not re.match(r"[a-z]+:", path) and not (page.parent / path).exists():
                yield number, f"{target} leads nowhere"


def main(arguments):
    pages = [Path(name).resolve() for name in arguments]
    if not pages:
        found = {path for pattern in PAGES for path in ROOT.glob(pattern)}
        pages = sorted(path for path in found if "node_modules" not in path.parts)
    count = 0
    for page in pages:
        text = page.read_text(encoding="utf-8")
        name = page.relative_to(ROOT).as_posix() if page.is_relative_to(ROOT) else str(page)
        for number, fault in sorted([*faults(name, text), *broken_links(page, text)]):
            print(f"{name}:{number}: {fault}")
            count += 1
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
