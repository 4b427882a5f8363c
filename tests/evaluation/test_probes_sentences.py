"""Sentence similarity, retrieval and intervals: exact where the answer is known, and chance by definition."""

import itertools
import json
from pathlib import Path

import numpy as np
import probed
import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory import run_of, store, stream

from cramming.errors import UserError
from cramming.evaluation.probes import result, retrieval, sts
from cramming.evaluation.probes.config import ProbeOptions
from cramming.evaluation.probes.reader import Reader
from cramming.evaluation.probes.retrieval import Sought
from cramming.evaluation.probes.sts import Rated
from cramming.progress import Silent

WORDS = probed.letters()
BAG = probed.reader_of(WORDS, hidden=lambda batch: probed.shown(batch, WORDS.vocab_size))
BLANK = probed.reader_of(WORDS)

# ---- similarity ----


def test_sentences_rated_by_the_letters_they_share_are_ranked_right() -> None:
    others = ["abcd", "abce", "abef", "aefg", "efgh"]
    asked = [Rated("abcd", other, 5.0 - number) for number, other in enumerate(others)]
    assert sts.probe(BAG, asked, "letters", ProbeOptions(), Silent()).score == pytest.approx(1.0)
    upside_down = [pair._replace(score=-pair.score) for pair in asked]
    assert sts.probe(BAG, upside_down, "letters", ProbeOptions(), Silent()).score == pytest.approx(-1.0)


def test_a_model_that_tells_nothing_apart_has_no_correlation() -> None:
    asked = [Rated("ab", "cd", 1.0), Rated("ab", "ef", 2.0), Rated("x", "y", 3.0), Rated("x", "z", 4.0)]
    found = sts.probe(BLANK, asked, "letters", ProbeOptions(), Silent())
    assert (found.score, found.interval, found.chance) == (None, None, 0.0)


def test_files_of_rated_pairs(tmp_path: Path) -> None:
    official = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
    official += '0\tnews\tf\t2012\t1\tnone\tnone\tA "man" runs.\tThe man ran "\t4.200\n' * 2
    rows = {
        "dev.tsv": official,
        "dev.csv": 'sentence1,sentence2,score\n"A ""man"" runs.","The man ran """,4.2\n' * 1
        + '"A ""man"" runs.","The man ran """,4.2\n',
        "dev.jsonl": json.dumps({"sentence1": 'A "man" runs.', "sentence2": 'The man ran "', "score": 4.2}) + "\n",
    }
    rows["dev.jsonl"] *= 2
    for name, text in rows.items():
        (tmp_path / name).write_text(text)
        assert sts.read(tmp_path / name) == [Rated('A "man" runs.', 'The man ran "', 4.2)] * 2, name
    (tmp_path / "bad.csv").write_text("sentence1,sentence2,score\na,b,high\n")
    with pytest.raises(UserError, match=r"line 2 is not two sentences and a number \('high'\)"):
        sts.read(tmp_path / "bad.csv")
    (tmp_path / "none.csv").write_text("sentence1,sentence2,rating\na,b,1\n")
    with pytest.raises(UserError, match="no column 'score'"):
        sts.read(tmp_path / "none.csv")


# ---- retrieval ----


@given(st.integers(0, 4), st.integers(1, 5))
def test_ties_are_broken_in_every_order_equally_often(nearer: int, equal: int) -> None:
    found = retrieval.expected(nearer, equal)
    places = [nearer + 1 + order.index(0) for order in itertools.permutations(range(equal))]
    assert found["mrr"] == pytest.approx(sum(1 / place for place in places) / len(places))
    assert found["recall@1"] == pytest.approx(sum(place <= 1 for place in places) / len(places))
    assert found["recall@5"] == pytest.approx(sum(place <= 5 for place in places) / len(places))


def test_a_model_that_tells_nothing_apart_gets_exactly_chance() -> None:
    texts = ["".join(letters) for letters in itertools.product("abc", repeat=3)]
    asked = [Sought(text, text + text) for text in texts]
    found = retrieval.probe(BLANK, asked, ProbeOptions(retrieval="x.csv"), Silent())
    count = len(texts)
    assert found.score == pytest.approx(sum(1 / rank for rank in range(1, count + 1)) / count) == found.chance
    assert found.also["recall@1"] == pytest.approx(1 / count) == found.also["chance_recall@1"]
    assert found.also["recall@5"] == pytest.approx(5 / count) == found.also["chance_recall@5"]


def test_a_model_that_knows_the_letters_finds_the_passages() -> None:
    asked = [Sought(letter, letter * 3) for letter in "abcdefghijklmnopqrstuvw"]
    # Letters within a word are other tokens: the query is a passage of one.
    asked = [Sought(f"{pair.query} {pair.query}", f"{pair.query} {pair.query} {pair.query}") for pair in asked]
    found = retrieval.probe(BAG, asked, ProbeOptions(retrieval="x.csv"), Silent())
    assert (found.score, found.also["recall@1"]) == (1.0, 1.0)


def test_ranks_are_those_of_sorting() -> None:
    generator = np.random.default_rng(0)
    queries, passages = generator.normal(size=(300, 8)), generator.normal(size=(300, 8))
    found = retrieval.gains(queries, passages, np.arange(300))
    for row in (0, 7, 299):
        cosines = [float(queries[row] @ p / np.linalg.norm(p)) for p in passages]
        rank = sorted(cosines, reverse=True).index(cosines[row]) + 1
        assert found["mrr"][row] == pytest.approx(1 / rank)
        assert found["recall@5"][row] == (rank <= 5)


def test_the_same_passage_twice_is_one_passage() -> None:
    asked = [Sought("a b", "a b c"), Sought("c", "a b c"), Sought("x", "x x y")]
    found = retrieval.probe(BAG, asked, ProbeOptions(retrieval="x.csv"), Silent())
    assert (found.score, found.examples, found.also["passages"]) == (1.0, 3, 2.0)


@pytest.mark.parametrize("layout", ["packed", "document"])
def test_halves_are_of_the_same_heldout_sequence(layout: str) -> None:
    source = stream(store(layout))
    reader = Reader.of_run(run_of(layout=layout))
    first, second = retrieval.halves(reader, None)
    assert len(first) == len(second) > 3
    tokens, lengths = source.store.read(source.split.heldout(np.arange(source.split.heldout_rows)))
    texts = [row if lengths is None else row[: lengths[at]] for at, row in enumerate(tokens.astype(int))]
    bodies = ["".join(f" {token}" for token in text) + " " for text in texts]
    words = reader.tokenizer
    for one, other in zip(first, second, strict=True):
        assert (one[0], one[-1], other[0], other[-1]) == (words.cls_id, words.sep_id) * 2
        assert len(one) == len(other) >= 6
        joined = "".join(f" {token}" for token in (*one[1:-1], *other[1:-1])) + " "
        assert sum(joined in body for body in bodies) == 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("query,text\na,b\n", "no column 'passage'"),
        ("query,passage\na,b\nc,\n", "line 3"),
        ("query,passage\na,b\n", "fewer"),
    ],
)
def test_files_that_nothing_can_be_found_in_are_refused(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "pairs.csv").write_text(content)
    with pytest.raises(UserError, match=says):
        retrieval.read(tmp_path / "pairs.csv")


# ---- intervals ----


def test_intervals_of_shares() -> None:
    low, high = result.of_share(8, 10)  # type: ignore[misc]
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)  # Wilson's, as in tables
    assert result.of_share(0, 0) is None
    assert result.of_share(10, 10)[1] == pytest.approx(1.0)  # type: ignore[index]


def test_examples_of_a_group_that_are_all_alike_count_once() -> None:
    right = np.array([1.0, 0, 1, 1, 0, 1, 1, 0, 1, 1])
    once = result.of_clustered_share(right, np.ones(10))
    assert result.of_clustered_share(5 * right, np.full(10, 5.0)) == pytest.approx(once)
    apart = result.of_clustered_share(np.full(10, 3.5), np.full(10, 5.0))
    assert apart == pytest.approx(result.of_share(35, 50)), "groups that vary less than by chance prove no more"
    assert result.of_clustered_share(np.zeros(4), np.ones(4)) == pytest.approx(result.of_share(0, 4))


def test_intervals_of_correlations() -> None:
    low, high = result.of_correlation(0.5, 28, ranks=False)  # type: ignore[misc]
    assert (round(low, 3), round(high, 3)) == (0.156, 0.736)  # as in tables
    wider = result.of_correlation(0.5, 28, ranks=True)
    assert wider is not None
    assert wider[0] < low < high < wider[1]
    assert result.of_correlation(None, 28, ranks=True) is result.of_correlation(0.5, 3, ranks=True) is None


# ---- what is kept ----


def test_answers_are_kept_by_step_and_label(tmp_path: Path) -> None:
    file = tmp_path / "probes.json"
    one = result.Result("knn", "sst2", "accuracy", 0.5, 0.5, None, 10)
    other = result.Result("knn", "cola", "accuracy", 0.75, 0.5, (0.5, 0.9), 10)
    result.keep(file, 100, [one])
    result.keep(file, 20, [one, other])
    result.keep(file, 100, [result.Result("knn", "sst2", "accuracy", 0.625, 0.5, None, 10)])
    kept = result.read(file)
    assert list(kept) == ["20", "100"]
    assert {label: answer["score"] for label, answer in kept["20"].items()} == {"knn/sst2": 0.5, "knn/cola": 0.75}
    assert kept["100"]["knn/sst2"]["score"] == 0.625
    file.write_text("{}")
    with pytest.raises(UserError, match="is damaged"):
        result.keep(file, 100, [one])
    assert file.read_text() == "{}", "what cannot be read is not written over"
