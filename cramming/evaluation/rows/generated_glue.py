"""GLUE made here: every task's files as its makers lay them out. CoLA, SST-2 and RTE can be learned in seconds.

A sentence is unacceptable where its verb is bent as no one does (``goed``), positive or negative by its adjectives, and
entailed where it says ``truly`` and not where it says ``never``.
"""

from collections.abc import Callable, Sequence

from cramming.evaluation.rows.generated_words import BAD, CITIES, GOOD, NAMES, WORKS, draw, pick, said, sentence

Rows = Callable[[str, int], list[tuple[str, ...]]]
LEARNABLE = {"train": 200, "dev": 50, "test": 20}
FEW = {"train": 20, "dev": 20, "test": 20}
_MNLI_PARSES = ("sentence1_binary_parse", "sentence2_binary_parse", "sentence1_parse", "sentence2_parse")


def files(task: str) -> dict[str, str]:
    """The official files of a task of GLUE: text by name."""
    return _FILES[task]()


def tsv(rows: Sequence[Sequence[str]]) -> str:
    """Rows with tabs between their fields."""
    return "".join("\t".join(row) + "\n" for row in rows)


def entailed(split: str, number: int) -> tuple[str, str, bool]:
    """A premise, a hypothesis, and whether the one follows from the other."""
    first, second = said("rte", split, number), said("rte other", split, number)
    follows = draw("rte label", split, number) % 5 < 3
    hypothesis = sentence(first.who, "truly" if follows else "never", first.did, first.where)  # of one length
    return f"{first} {second}", hypothesis, follows


def _cola() -> dict[str, str]:
    """Source, label, the source's mark, sentence; without header but in the test file."""
    made = {}
    for split, count in LEARNABLE.items():
        rows: list[tuple[str, ...]] = [("index", "sentence")] if split == "test" else []
        for number in range(count):
            one = said("cola", split, number)
            right = draw("cola label", split, number) % 5 < 3
            text = sentence(one.who, one.did if right else one.wrong, one.where)
            rows.append((str(number), text) if split == "test" else _cola_row(right, text))
        made[f"{split}.tsv"] = tsv(rows)
    return made


def _cola_row(right: bool, text: str) -> tuple[str, ...]:
    return ("made", "1", "", text) if right else ("made", "0", "*", text)


def _sst2() -> dict[str, str]:
    def row(split: str, number: int) -> tuple[str, str]:
        positive = draw("sst2 label", split, number) % 5 < 3
        words = [pick(GOOD if positive else BAD, "sst2", which, split, number) for which in ("first", "second")]
        return f"{pick(WORKS, 'sst2', split, number)} is {words[0]} and {words[1]} .", str(int(positive))

    made = {"test.tsv": tsv([("index", "sentence"), *((str(n), row("test", n)[0]) for n in range(LEARNABLE["test"]))])}
    for split in ("train", "dev"):
        made[f"{split}.tsv"] = tsv([("sentence", "label"), *(row(split, n) for n in range(LEARNABLE[split]))])
    return made


def _rte() -> dict[str, str]:
    def row(split: str, number: int) -> tuple[str, ...]:
        premise, hypothesis, follows = entailed(split, number)
        return str(number), premise, hypothesis, "entailment" if follows else "not_entailment"

    return _labelled(("index", "sentence1", "sentence2", "label"), row, LEARNABLE)


def _mrpc() -> dict[str, str]:
    def row(split: str, number: int) -> tuple[str, ...]:
        first, second = _pair("mrpc", split, number)
        return str((number + 1) % 2), str(1000 + number), str(2000 + number), first, second

    header = ("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String")
    made = {}
    for split, count in FEW.items():
        rows = [row(split, number) for number in range(count)]
        if split == "test":
            made["test.tsv"] = tsv([("index", *header[1:]), *((str(n), *r[1:]) for n, r in enumerate(rows))])
        else:
            made[f"{split}.tsv"] = "\ufeff" + tsv([header, *rows])  # as the official files begin
    return made


def _stsb() -> dict[str, str]:
    header = (
        "index",
        "genre",
        "filename",
        "year",
        "old_index",
        "source1",
        "source2",
        "sentence1",
        "sentence2",
        "score",
    )

    def row(split: str, number: int) -> tuple[str, ...]:
        pair = _pair("stsb", split, number)
        return (
            str(number),
            "made",
            "made",
            "made",
            str(number),
            "none",
            "none",
            *pair,
            f"{5 - 0.25 * (number % 20):.3f}",
        )

    return _labelled(header, row, FEW)


def _qqp() -> dict[str, str]:
    def question(name: str, city: str, form: int) -> str:
        return (f"How does {name} come to {city}?", f"What is the way of {name} to {city}?")[form]

    def row(split: str, number: int) -> tuple[str, ...]:
        name, city = pick(NAMES, "qqp", split, number), pick(CITIES, "qqp", split, number)
        same = (number + 1) % 2
        other = city if same else CITIES[(CITIES.index(city) + 1) % len(CITIES)]
        ids = (str(number), str(2 * number), str(2 * number + 1))
        return *ids, question(name, city, 0), question(name, other, 1), str(same)

    header = ("id", "qid1", "qid2", "question1", "question2", "is_duplicate")
    made = {f"{split}.tsv": tsv([header, *(row(split, n) for n in range(FEW[split]))]) for split in ("train", "dev")}
    rows = [row("test", number) for number in range(FEW["test"])]
    made["test.tsv"] = tsv([("id", *header[3:5]), *((r[0], *r[3:5]) for r in rows)])
    return made


def _mnli() -> dict[str, str]:
    front = ("index", "promptID", "pairID", "genre", *_MNLI_PARSES, "sentence1", "sentence2")
    made = {}
    for split, labels in (
        ("train", 1),
        ("dev_matched", 5),
        ("dev_mismatched", 5),
        ("test_matched", 0),
        ("test_mismatched", 0),
    ):
        names = tuple(f"label{place + 1}" for place in range(labels))
        rows = [(*front, *names, "gold_label") if labels else front]
        for number in range(20):
            label = ("entailment", "neutral", "contradiction")[number % 3]
            texts = _three_way(label, split, number)
            fields = (str(number), str(number), f"{number}n", "made", *("( )",) * len(_MNLI_PARSES), *texts)
            rows.append((*fields, *(label,) * (labels + 1)) if labels else fields)
        made[f"{split}.tsv"] = tsv(rows)
    return made


def _three_way(label: str, split: str, number: int) -> tuple[str, str]:
    one = said("mnli", split, number)
    hypothesis = {
        "entailment": str(one),
        "neutral": sentence(one.who, "was", pick(GOOD, "mnli", split, number)),
        "contradiction": sentence(one.who, "never", one.did, one.where),
    }
    return str(one), hypothesis[label]


def _qnli() -> dict[str, str]:
    def row(split: str, number: int) -> tuple[str, ...]:
        one, follows = said("qnli", split, number), number % 2 == 0
        answer = str(one) if follows else sentence(pick(WORKS, "qnli", split, number), "was long")
        return str(number), f"Where was {one.who}?", answer, "entailment" if follows else "not_entailment"

    return _labelled(("index", "question", "sentence", "label"), row, FEW)


def _wnli() -> dict[str, str]:
    def row(split: str, number: int) -> tuple[str, ...]:
        first, second = NAMES[number % 6], NAMES[(number + 1 + number // 6) % 6]
        told = f"{first} could not see {second} because she was too far away."
        follows = number % 2
        return str(number), told, f"{second if follows else first} was too far away.", str(follows)

    return _labelled(("index", "sentence1", "sentence2", "label"), row, FEW)


def _ax() -> dict[str, str]:
    labels = ("entailment", "neutral", "contradiction")
    rows = [(str(number), *_three_way(labels[number % 3], "ax", number)) for number in range(20)]
    return {"diagnostic.tsv": tsv([("index", "sentence1", "sentence2"), *rows])}


def _labelled(
    header: tuple[str, ...], row: Callable[[str, int], tuple[str, ...]], counts: dict[str, int]
) -> dict[str, str]:
    """Files whose last column is the label, which the test file lacks."""
    made = {}
    for split, count in counts.items():
        width = len(header) - (split == "test")
        made[f"{split}.tsv"] = tsv([header[:width], *(row(split, number)[:width] for number in range(count))])
    return made


def _pair(task: str, split: str, number: int) -> tuple[str, str]:
    """Two sentences that say the same at even numbers."""
    first, second = said(task, split, number), said(task, "other", split, number)
    again = f"{first.where[0].upper()}{first.where[1:]} {first.who} {first.did}."
    return str(first), again if number % 2 == 0 else str(second)


_FILES: dict[str, Callable[[], dict[str, str]]] = {
    "ax": _ax,
    "cola": _cola,
    "mnli": _mnli,
    "mrpc": _mrpc,
    "qnli": _qnli,
    "qqp": _qqp,
    "rte": _rte,
    "sst2": _sst2,
    "stsb": _stsb,
    "wnli": _wnli,
}
