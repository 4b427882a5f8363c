"""SuperGLUE, SWAG and RACE made here: a few rows of every task, as its makers lay its files out."""

import json
from collections.abc import Callable, Iterable
from typing import Any

from cramming.evaluation.rows.generated_glue import FEW, LEARNABLE, entailed
from cramming.evaluation.rows.generated_words import BAD, CITIES, GOOD, NAMES, WHO, pick, said, sentence

Record = dict[str, Any]
_FILE_OF = {"train": "train", "dev": "val", "test": "test"}
_WORDS = ("bank", "light", "play")
_SENSES = {
    "bank": ("He put his money in the bank.", "She sat on the bank of the river."),
    "light": ("The light of the lamp was weak.", "This bag is very light."),
    "play": ("The children play in the garden.", "We saw a play by an old writer."),
}


def files(task: str) -> dict[str, str]:
    """The official files of a task: text by name."""
    if task == "axb":
        return {"AX-b.jsonl": jsonl(_axb(number) for number in range(FEW["test"]))}
    if task == "axg":
        return {"AX-g.jsonl": jsonl(_axg(number) for number in range(FEW["test"]))}
    row = _ROWS[task]
    made = {}
    for split, count in (LEARNABLE if task == "rte_superglue" else FEW).items():
        records = [row(split, number) for number in range(count)]
        if split == "test":
            records = [_unlabelled(record) for record in records]
        made[f"{_FILE_OF[split]}.jsonl"] = jsonl(records)
    return made


def jsonl(records: Iterable[Record]) -> str:
    """One object a line."""
    return "".join(json.dumps(record) + "\n" for record in records)


def _unlabelled(record: Record) -> Record:
    """A row as test sets have it."""
    record.pop("label", None)
    for question in record.get("passage", {}).get("questions", ()) if isinstance(record.get("passage"), dict) else ():
        for answer in question["answers"]:
            del answer["label"]
    for query in record.get("qas", ()):
        query["answers"] = []
    return record


def _boolq(split: str, number: int) -> Record:
    one, yes = said("boolq", split, number), number % 2 == 0
    where = one.where if yes else "in the sky"
    question = f"was {one.who} {where}"
    return {"question": question, "passage": f"Story -- {one} It was late.", "idx": number, "label": yes}


def _cb(split: str, number: int) -> Record:
    label = ("entailment", "contradiction", "neutral")[number % 3]
    one, name = said("cb", split, number), pick(NAMES, "cb", split, number)
    told = {"entailment": "knows that", "contradiction": "does not believe that", "neutral": "asks whether"}[label]
    premise = f"{name} {told} {str(one)[0].lower()}{str(one)[1:]}"
    return {"premise": premise, "hypothesis": str(one)[:-1], "label": label, "idx": number}


def _copa(split: str, number: int) -> Record:
    name, right = pick(NAMES, "copa", split, number), number % 2
    cause = number % 4 < 2
    premise = f"{name} was wet." if cause else f"{name} went into the rain."
    fits, other = (f"{name} went into the rain." if cause else f"{name} was wet."), f"{name} read a book."
    choices = (other, fits) if right else (fits, other)
    return {"premise": premise, "choice1": choices[0], "choice2": choices[1],
            "question": "cause" if cause else "effect", "label": right, "idx": number}  # fmt: skip


def _multirc(split: str, number: int) -> Record:
    """A paragraph with two questions of three answers each."""
    told = [said("multirc", split, number, place) for place in range(2)]
    questions = []
    for place, one in enumerate(told):
        idx = 2 * number + place
        answers = [(one.where, 1), ("in the sky", 0), (f"it was {one.where}", 1)]
        questions.append({
            "question": f"Where was {one.who}?",
            "answers": [{"text": text, "idx": 3 * idx + n, "label": label} for n, (text, label) in enumerate(answers)],
            "idx": idx,
        })  # fmt: skip
    return {"idx": number, "version": 1.1, "passage": {"text": " ".join(map(str, told)), "questions": questions}}


def _record(split: str, number: int) -> Record:
    name, city = pick(NAMES, "record", split, number), pick(CITIES, "record", split, number)
    other = NAMES[(NAMES.index(name) + 1 + number % 5) % len(NAMES)]
    text = (
        f"{name} lives in {city}. {other} came to {city}\n@highlight\n{name} has a house\n@highlight\n{other} has none"
    )
    entities = [{"start": at, "end": at + len(word) - 1} for word in (name, city, other) for at in _places(text, word)]
    answer = [{"start": at, "end": at + len(name) - 1, "text": name} for at in _places(text, name)]
    query = {"query": f"The house of @placeholder is in {city}.", "answers": answer, "idx": number}
    return {"source": "made", "passage": {"text": text, "entities": entities}, "qas": [query], "idx": number}


def _places(text: str, word: str) -> list[int]:
    return [at for at in range(len(text)) if text.startswith(word, at)]


def _rte(split: str, number: int) -> Record:
    premise, hypothesis, follows = entailed(split, number)
    label = "entailment" if follows else "not_entailment"
    return {"premise": premise, "hypothesis": hypothesis, "label": label, "idx": number}


def _wic(split: str, number: int) -> Record:
    word, same = _WORDS[number % 3], number % 2 == 0
    first, second = _SENSES[word][0], _SENSES[word][0 if same else 1]
    second = f"{pick(NAMES, 'wic', split, number)} said: {second}"
    starts = first.index(word), second.index(word)
    return {"word": word, "sentence1": first, "sentence2": second, "idx": number, "label": same,
            "start1": starts[0], "start2": starts[1], "end1": starts[0] + len(word), "end2": starts[1] + len(word),
            "version": 1.1}  # fmt: skip


def _wsc(split: str, number: int) -> Record:
    name, who = pick(NAMES, "wsc", split, number), pick(WHO, "wsc", split, number)
    text = f"{name} thanked {who} because he had helped."
    right = number % 2 == 0
    words, place = (who, 2) if right else (name, 0)
    target = {"span1_text": words, "span1_index": place, "span2_text": "he", "span2_index": 3 + len(who.split())}
    return {"text": text, "target": target, "idx": number, "label": right}


def _axb(number: int) -> Record:
    one, follows = said("axb", number), number % 2 == 0
    other = str(one) if follows else sentence(one.who, "never", one.did, one.where)
    return {"idx": str(number), "label": "entailment" if follows else "not_entailment", "sentence1": str(one),
            "sentence2": other, "logic": "" if follows else "Negation"}  # fmt: skip


def _axg(number: int) -> Record:
    """Two rows that follow one another differ in the pronoun alone."""
    place, pronoun = number // 2, ("his", "her")[number % 2]
    follows = place % 2 == 0
    work, thing = pick(("teacher", "farmer", "singer", "writer"), place, "work"), pick(("book", "bag", "hat"), place)
    return {"hypothesis": f"The {work if follows else 'doctor'} lost a {thing}.", "idx": number,
            "label": "entailment" if follows else "not_entailment", "pair_id": 1000 + number,
            "premise": f"The {work} told the doctor about {pronoun} lost {thing}."}  # fmt: skip


def _swag(split: str, number: int) -> Record:
    one = said("swag", split, number)
    right = number % 4
    endings = [f"was {pick(BAD, 'swag', split, number, place)}" for place in range(4)]
    endings[right] = f"was {pick(GOOD, 'swag', split, number)}"
    return {"startphrase": str(one), **{f"ending{place}": text for place, text in enumerate(endings)}, "label": right}


def _race(split: str, number: int) -> Record:
    one = said("race", split, number)
    right = number % 4
    options = ["in the sky", "on the moon", "nowhere", "in a song"]
    options[right] = one.where
    return {"example_id": f"made{number}.txt", "article": f"{one} It was late.", "question": f"Where was {one.who}?",
            "options": options, "answer": "ABCD"[right]}  # fmt: skip


_ROWS: dict[str, Callable[[str, int], Record]] = {
    "boolq": _boolq,
    "cb": _cb,
    "copa": _copa,
    "multirc": _multirc,
    "race": _race,
    "record": _record,
    "rte_superglue": _rte,
    "swag": _swag,
    "wic": _wic,
    "wsc": _wsc,
}
