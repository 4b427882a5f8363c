"""``data.normalize``: each step's law, their order, the tokenizer that carries them, and one that does other things."""

import json
from pathlib import Path

import pytest
from tokenizers.normalizers import BertNormalizer

from cramming.data.config import NORMALIZATIONS
from cramming.data.preparation import prepare
from cramming.data.sources.local import LocalConfig
from cramming.data.tokenizer import Tokenizer
from cramming.data.tokenizer_normalizing import described, json_of, normalizer_of, same_effect
from cramming.data.tokenizer_training import train
from cramming.errors import UserError

#: What the earlier study did to all of its text, in our names.
STUDY = ["quotes", "nfd", "lowercase", "strip_accents", "spaces", "ascii"]

LAWS = {
    "nfc": ("e\u0301 \ufb01", "\u00e9 \ufb01"),
    "nfd": ("\u00e9 \ufb01", "e\u0301 \ufb01"),
    "nfkc": ("e\u0301 \ufb01 \uff21\u3000", "\u00e9 fi A "),
    "nfkd": ("\u00e9 \ufb01", "e\u0301 fi"),
    "lowercase": ("ÀB \u0130", "àb i\u0307"),
    "strip_accents": ("Café e\u0301 がぎ 한국 ß", "Cafe e かき 한국 ß"),
    "quotes": ("``so'' 'a' `", "\"so\" 'a' `"),
    "spaces": ("a  b\n\n c    d", "a b\n\n c d"),
    "ascii": ("naïve – 漢字.", "nave  ."),
}


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_each_step(name: str) -> None:
    text, expected = LAWS[name]
    assert normalizer_of([name]).normalize_str(text) == expected
    for names in ([name], ["nfd", name], [name, "nfc"], [name, "strip_accents", "lowercase"]):
        assert described(json_of(normalizer_of(names))) == names
    others = [other for other in NORMALIZATIONS if other != name]
    for other in others:
        if "spaces" not in (name, other):  # white space is not compared
            assert not same_effect(normalizer_of([name]), normalizer_of([other])), (name, other)


def test_order_is_as_given() -> None:
    assert normalizer_of(["strip_accents", "ascii"]).normalize_str("café") == "cafe"
    assert normalizer_of(["ascii", "strip_accents"]).normalize_str("café") == "caf"
    assert normalizer_of([]).normalize_str(" Ünï  ") == " Ünï  "


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_the_tokenizer_carries_it(kind: str, english: str, tmp_path: Path) -> None:
    """Saved and loaded, it does the same to text it never saw, and says what that is."""
    english += " Kati KATI katí " * 20
    train([english], 400, "it", kind, ["nfkc", "lowercase", "strip_accents", "ascii"]).save(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.normalization == ["nfkc", "lowercase", "strip_accents", "ascii"]
    plain = tokenizer.encode("kati kati kati").tolist()
    assert tokenizer.encode("Kátì KATI\u3000ｋati漢").tolist() == plain
    cased = train([english], 400, "it", kind, [])
    assert cased.normalization == []
    assert len({tuple(cased.encode(word).tolist()) for word in ("Kati", "KATI", "kati", "katí")}) == 4
    usual = train([english], 400, "it", kind)
    assert usual.normalization == {"wordpiece": ["strip_accents", "lowercase"]}.get(kind, ["nfkc"])


def test_wordpiece_without_lowercase_has_capital_letters(english: str) -> None:
    """All of ASCII can be spelled, whatever the text has."""
    tokenizer = train([english], 500, "it", "wordpiece", ["nfc"])
    assert tokenizer.unk_id not in tokenizer.encode("QUIZ quiz {}~ Zz").tolist()


def config(tmp_path: Path, text: str, **options: object) -> LocalConfig:
    (tmp_path / "text.txt").write_text(text)
    return LocalConfig(path=str(tmp_path / "text.txt"), vocab_size=400, seq_length=16, **options)  # type: ignore[arg-type]


@pytest.fixture
def uncased(tmp_path: Path, english: str) -> str:
    """A tokenizer as BERT's uncased ones."""
    train([english], 300, "it").save(tmp_path / "uncased")
    return str(tmp_path / "uncased")


def test_a_vocabulary_of_another_normalization_is_refused(tmp_path: Path, english: str, uncased: str) -> None:
    mistaken = config(tmp_path, english, tokenizer=uncased, normalize=["nfkc"])
    with pytest.raises(UserError) as refused:
        prepare(mistaken, tmp_path / "data", workers=0)
    message = str(refused.value)
    assert message == (
        f"data.normalize=[nfkc] is not what data.tokenizer={uncased} does: its vocabulary belongs to "
        "[strip_accents,lowercase]; set data.normalize=null, or train one with data.tokenizer=train"
    )
    fine = config(tmp_path, english, tokenizer=uncased, normalize=["lowercase", "strip_accents"])
    assert prepare(fine, tmp_path / "data", workers=0).manifest["tokenizer"] == {
        "trained_here": False,
        "kind": "wordpiece",
        "normalize": ["strip_accents", "lowercase"],
    }


def test_effects_decide_not_spelling() -> None:
    """BERT's own normalizer does what two of our steps do; with Chinese characters apart that stays so."""
    bert = BertNormalizer(lowercase=True, strip_accents=True)
    assert same_effect(bert, normalizer_of(["strip_accents", "lowercase"]))
    assert same_effect(bert, normalizer_of(["lowercase", "strip_accents"]))
    assert not same_effect(bert, normalizer_of(["lowercase"]))
    assert not same_effect(BertNormalizer(lowercase=False), normalizer_of(["lowercase"]))
    assert same_effect(None, normalizer_of([]))
    assert described(json_of(BertNormalizer(lowercase=False))) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalize": ["nfkd", "lowercas"]}, "data.normalize has 'lowercas', .*did you mean 'lowercase'"),
        ({"tokenizer_kind": "unigran"}, "data.tokenizer_kind=unigran is not known; did you mean 'unigram'"),
        ({"tokenizer_kind": "bpe", "vocab_size": 299}, "vocab_size=299 is too small; it takes 300"),
        (
            {"tokenizer_kind": "bpe", "tokenizer": "bert-base-uncased"},
            "tokenizer_kind=bpe is for a tokenizer trained here",
        ),
    ],
)
def test_wrong_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LocalConfig(**{"path": "x", **options}).check()  # type: ignore[arg-type]


def test_kinds_and_normalizations_do_not_share_a_folder(tmp_path: Path, english: str) -> None:
    stores = [
        prepare(config(tmp_path, english, **options), tmp_path / "data", workers=0)
        for options in ({}, {"tokenizer_kind": "bpe"}, {"normalize": ["nfc"]}, {"tokenizer_kind": "wordpiece"})
    ]
    assert [store.tokenizer.kind for store in stores] == ["wordpiece", "bpe", "wordpiece", "wordpiece"]
    assert stores[0].fingerprint == stores[3].fingerprint, "auto came to the same tokenizer"
    assert len({store.fingerprint for store in stores}) == 3
    assert json.loads((stores[1].folder / "manifest.json").read_text())["unknown_share"] == 0.0


def test_a_large_share_of_unknown_text_is_reported(tmp_path: Path, english: str, uncased: str) -> None:
    notes: list[str] = []

    class Noting:
        def __getattr__(self, name: str):  # type: ignore[no-untyped-def]
            return notes.append if name == "note" else lambda *_: None

    strange = config(tmp_path, "bada 漢字 " * 400, tokenizer=uncased)
    store = prepare(strange, tmp_path / "data", workers=0, progress=Noting())  # type: ignore[arg-type]
    tokens = store.tokenizer.encode("bada 漢字").tolist()
    assert store.manifest["unknown_share"] == pytest.approx(tokens.count(1) / len(tokens))
    assert [note for note in notes if "% of the tokens are [UNK]" in note]
    notes.clear()
    prepare(config(tmp_path, english, tokenizer=uncased), tmp_path / "data", workers=0, progress=Noting())  # type: ignore[arg-type]
    assert not [note for note in notes if "[UNK]" in note]


def test_steps_that_drop_the_text_are_refused(tmp_path: Path) -> None:
    """An English recipe on Japanese text, such as another language's Wikipedia, must not end in an empty corpus."""
    japanese = config(tmp_path, "日本語の文。AB\n\n" * 300, normalize=STUDY)
    with pytest.raises(
        UserError, match=r"strip_accents,spaces,ascii\] leaves 25% of the characters of .*normalize=null"
    ):
        prepare(japanese, tmp_path / "data", workers=0)
