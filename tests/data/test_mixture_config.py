"""A mixture on the command line: what it composes to, and what is refused."""

from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from cramming.cli import compose, pretraining
from cramming.config import PretrainConfig, typed
from cramming.data.sources.mixture import MixtureConfig
from cramming.errors import UserError
from cramming.folder import differences

MIX = "data.mix={wiki: 0.7, python_docs: 0.3}"
PLAIN = "data.sources.wiki={kind: local, path: ../shared/data/wiki_en}"


def mixture(*words: str) -> MixtureConfig:
    """The data config of a command line."""
    data = compose([*words, "arch=bert_tiny"]).data
    assert isinstance(data, MixtureConfig)
    return data


@pytest.mark.parametrize(
    "words",
    [
        [MIX, "+data@data.sources.wiki=local", "data.sources.wiki.path=../shared/data/wiki_en"],
        [MIX, PLAIN],
        ["data=mixture", PLAIN, MIX],
        [MIX, "data.sources.wiki={kind: local}", "data.sources.wiki.path=../shared/data/wiki_en"],
        [MIX, "data.sources={wiki: {kind: local, path: ../shared/data/wiki_en}}"],
        [MIX, PLAIN, "data.sources.python_docs={max_documents: null}"],
    ],
)
def test_every_way_to_write_it_is_the_same_config(words: list[str]) -> None:
    data = mixture(*words)
    assert (data.shares, data.exhausted) == ({"wiki": 0.7, "python_docs": 0.3}, "stop")
    assert {name: member.kind for name, member in data.members().items()} == {
        "wiki": "local",
        "python_docs": "python_docs",
    }
    assert data.sources["wiki"]["path"] == "../shared/data/wiki_en"
    assert data == mixture(MIX, PLAIN)


def test_members_have_their_own_options_and_the_mixture_those_of_the_whole() -> None:
    data = mixture(
        MIX, PLAIN, "data.sources.python_docs.max_documents=9", "data.seq_length=64", "data.max_documents=50"
    )
    assert data.members()["python_docs"].max_documents == 9
    assert (data.seq_length, data.max_documents) == (64, 50)
    assert set(data.sources["wiki"]) == {"kind", "name", "max_documents", "path", "text_column", "document"}


@pytest.mark.parametrize("mix", ["[python_docs,wiki]", "{python_docs: null, wiki: null}"])
def test_without_shares_in_the_order_given(mix: str) -> None:
    data = mixture(f"data.mix={mix}", PLAIN)
    assert data.shares is None
    assert list(data.members()) == ["python_docs", "wiki"]


def test_a_mixture_in_a_mixture() -> None:
    inner = "data.sources.all={kind: mixture, mix: [wiki], sources: {wiki: {kind: local, path: x}}}"
    member = mixture("data.mix={all: 0.5, python_docs: 0.5}", inner).members()["all"]
    assert isinstance(member, MixtureConfig)
    assert list(member.members()) == ["wiki"]


def test_options_outside_the_clone_can_be_mixed(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text("defaults:\n  - schema_local\n  - _self_\npath: my/texts\n")
    seen: list[PretrainConfig] = []
    pretraining(
        seen.append, ["--config-dir", str(tmp_path), "data.mix={mine: 0.5, python_docs: 0.5}", "arch=bert_tiny"]
    )
    assert seen[0].data.sources["mine"]["path"] == "my/texts"


def test_a_sweep_over_mixtures(tmp_path: Path) -> None:
    seen: list[PretrainConfig] = []
    mixes = "data.mix={wiki: 1.0},{wiki: 0.5, python_docs: 0.5}"
    words = ["-m", "name=s", mixes, PLAIN, "arch=bert_tiny", f"hydra.sweep.dir={tmp_path}"]
    pretraining(seen.append, words)
    assert [list(config.data.sources) for config in seen] == [["wiki"], ["wiki", "python_docs"]]
    assert len({config.name for config in seen}) == 2


def test_what_is_stored_is_read_back_the_same() -> None:
    config = compose([MIX, PLAIN, "arch=bert_tiny"])
    stored = OmegaConf.create(OmegaConf.to_yaml(OmegaConf.structured(config)))
    assert isinstance(stored, DictConfig)
    assert typed(stored) == config


def test_what_makes_another_run() -> None:
    def stored(*words: str) -> dict[str, object]:
        return OmegaConf.to_container(OmegaConf.structured(compose([*words, "arch=bert_tiny"])))  # type: ignore[return-value]

    here = stored(MIX, PLAIN)
    elsewhere = stored(MIX, "data.sources.wiki={kind: local, path: /mnt/wiki_en}")
    assert differences(here, elsewhere) == []
    other = stored("data.mix={wiki: 0.6, python_docs: 0.4}", PLAIN)
    assert [key for key, *_ in differences(here, other)] == ["data.mix.python_docs", "data.mix.wiki"]


@pytest.mark.parametrize("option", ["bookcorpus_wikipedia", "bcwk", "bookcorpus-wikitext"])
def test_bookcorpus_and_wikipedia(option: str) -> None:
    data = mixture(f"data={option}", "data.sources.wikipedia.max_documents=5")
    assert (data.shares, data.name) == (None, "bookcorpus_wikipedia")
    members = data.members()
    assert [(name, member.kind) for name, member in members.items()] == [("bookcorpus", "hub"), ("wikipedia", "hub")]
    assert members["wikipedia"].max_documents == 5
    shared = mixture(f"data={option}", "data.mix={bookcorpus: 0.3, wikipedia: 0.7}")
    assert shared.shares == {"bookcorpus": 0.3, "wikipedia": 0.7}
    inside = mixture(f"data.mix={{{option}: 0.5, python_docs: 0.5}}").members()[option]
    assert isinstance(inside, MixtureConfig)
    assert list(inside.members()) == ["bookcorpus", "wikipedia"]


REFUSED = {
    "data.mix names 'wiki', which is neither configured nor an option of data (": [MIX],
    "configure it: +data@data.sources.wiki=local data.sources.wiki.path=": [MIX],
    "did you mean data.mix='{wiki: 0.636364, python_docs: 0.363636}'?": [
        "data.mix={wiki: 0.7, python_docs: 0.4}",
        PLAIN,
    ],
    "python_docs=-0.3 is no share": ["data.mix={wiki: 1.3, python_docs: -0.3}", PLAIN],
    "python_docs=0 is no share": ["data.mix={wiki: 1, python_docs: 0}", PLAIN],
    "python_docs=many is no share": ["data.mix={wiki: 0.7, python_docs: many}", PLAIN],
    "python_docs=None is no share": ["data.mix={wiki: 0.7, python_docs: null}", PLAIN],
    "data.sources.wiki.seq_length: a mixture has one seq_length for all": [
        MIX,
        PLAIN,
        "data.sources.wiki.seq_length=3",
    ],
    "data.sources.wiki.layout: a mixture has one": [MIX, "data.sources.wiki={kind: local, path: x, layout: document}"],
    "unknown option data.sources.wiki.pathh; did you mean 'data.sources.wiki.path'?": [
        MIX,
        "+data@data.sources.wiki=local",
        "data.sources.wiki.pathh=3",
    ],
    "unknown option data.sources.wikipedia.datset; did you mean 'data.sources.wikipedia.dataset'?": [
        "data=bcwk",
        "data.sources.wikipedia.datset=x",
    ],
    "unknown option data.sources.wiki.pth; did you mean 'path'?": [MIX, "data.sources.wiki={kind: local, pth: x}"],
    "data has no 'locl'; did you mean 'local'?": [MIX, "data.sources.wiki={kind: locl, path: x}"],
    "data has no option 'locl'; did you mean 'local'?": [MIX, "+data@data.sources.wiki=locl"],
    "data.sources.wiki.max_documents: Value 'x'": [MIX, "data.sources.wiki={kind: local, path: x, max_documents: x}"],
    "data=local needs data.sources.wiki.path=": [MIX, "data.sources.wiki={kind: local}"],
    "needs data.sources.all.sources.wiki.path=": [
        "data.mix=[all]",
        "data.sources.all={kind: mixture, mix: [wiki], sources: {wiki: {kind: local}}}",
    ],
    "data.sources.books is not part of data.mix": [MIX, PLAIN, "data.sources.books={kind: local, path: x}"],
    "data.exhausted=repeat needs shares": ["data.mix=[wiki,python_docs]", PLAIN, "data.exhausted=repeat"],
    "did you mean 'repeat'?": [MIX, PLAIN, "data.exhausted=repaet"],
    "data.mix=3 is no mixture": ["data.mix=3"],
    "data.mix=[] is no mixture": ["data.mix=[]"],
    "each source once": ["data.mix=[python_docs,python_docs]"],
    "data=mixture needs data.mix=": ["data=mixture"],
    "data.mix belongs to data=mixture": ["data=python_docs", MIX],
    "has rows that are ready": ["data.mix=[published]"],
}


@pytest.mark.parametrize(("says", "words"), REFUSED.items())
def test_refused_in_one_line(says: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        mixture(*words)
    message = str(caught.value)
    assert says in message
    assert "\n" not in message
    assert len(message) < 400
