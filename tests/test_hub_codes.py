"""Codes on the Hub: a data set with a card, read by our verbs and by `datasets`, which keeps whose codes they are."""

import json
import shutil

import datasets
import numpy as np
import pytest
from huggingface_hub import DatasetCard
from PIL import Image

from .test_hub import Client, hub, link  # noqa: F401


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):  # noqa: F811
    """A client, and on the Hub the tokenizer me/vqvae and the data set me/codes of it."""
    client = Client(hub, tmp_path_factory.mktemp("hub"), module="tests.hub_codes_client")
    client("build_tokenizers", work=str(client.work))
    noise = np.random.default_rng(0)
    for split, count in (("train", 8), ("validation", 2)):
        for index in range(count):
            folder = client.work / "flowers" / split / ("rose" if index % 2 else "daisy")
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    *_, output = run(
        client,
        ["push", "vqvae", "me/vqvae", "--license", "mit"],
        ["push", "other", "me/other", "--license", "mit"],
        ["tokenize", "me/vqvae", "--data", "flowers", "--output", "codes", "--shard_size", "5"],
        ["push", "codes", "me/codes", "--license", "mit", "--dataset", "flowers"],
    )
    assert hub.head("datasets/me/codes") in output
    yield client
    client.close()


def run(client, *lines):
    """What commands print."""
    said = client("commands", lines=[list(map(str, line)) for line in lines], folder=str(client.work))
    for code, _, errors in said:
        assert code == 0, errors
    return [output for _, output, _ in said]


def refused(client, *lines):
    """What is said of commands, a line of each."""
    said = client("commands", lines=[list(map(str, line)) for line in lines], folder=str(client.work))
    for code, _, errors in said:
        assert code == 2
        assert len([line for line in errors.splitlines() if "hf-vq: error" in line]) == 1
    return [errors for _, _, errors in said]


@pytest.fixture(scope="module")
def travelled(client):
    """What `datasets` made of me/codes: folders again, twice, "on disk" and lost, and the data set me/stock."""
    return client("take_through_datasets", work=str(client.work))


def test_codes_become_a_data_set_in_one_commit(client, hub):  # noqa: F811
    shards = {f"data/{path.name}": path.read_bytes() for path in (client.work / "codes/data").iterdir()}
    files = dict(hub.files("datasets/me/codes"))
    card = DatasetCard(files.pop("README.md").decode())
    assert files == shards
    assert len(shards) == 3
    assert "me/codes" not in hub.repositories
    assert len(hub.repositories["datasets/me/codes"]) == 2  # its first commit is that of a new repository
    assert card.data.license == "mit"
    assert card.data.task_categories == ["unconditional-image-generation"]
    assert card.data.size_categories == ["n<1K"]
    assert card.data.tags == ["hf_vq", "vector-quantization", "codes", "vqvae"]
    identity = client("codes_in", names=["me/codes"])[0]["tokenizer"]
    commit = hub.head("me/vqvae")
    assert identity["path"] == f"me/vqvae@{commit}"
    link_to_it = f"[me/vqvae@{commit}](https://huggingface.co/me/vqvae)"
    for words in (identity["codes_sha256"], link_to_it, "`12`", "`[8, 8]`", "| train | 8 |", "images of `flowers`"):
        assert words in card.text, words
    assert f'"me/vqvae", revision="{commit}"' in card.text
    assert client("run_card", repo_id="datasets/me/codes", folder=str(client.work)) == 1


def test_an_evaluation_tells_the_commit_of_data_of_the_hub(client, hub):  # noqa: F811
    pictures = [str(path) for path in sorted((client.work / "flowers/train").rglob("*.png"))]
    rows = datasets.Dataset.from_dict({"image": pictures}).cast_column("image", datasets.Image())
    rows.to_parquet(client.work / "rows.parquet")
    hub.create("datasets/me/flowers")
    hub.commit("datasets/me/flowers", "main", {"data/train.parquet": (client.work / "rows.parquet").read_bytes()})
    run(client, *[["evaluate", "vqvae", "--data", "me/flowers", "--split", "train"]] * 2)  # the second replaces it
    report = json.loads((client.work / "vqvae/evaluation.json").read_text())
    assert report["autoencoder"]["mse"] > 0
    assert report["protocol"]["commit"] == hub.head("datasets/me/flowers")
    assert (report["data"], report["split"]) == ("me/flowers", "train")
    assert report["protocol"]["sample_shape"] == [3, 16, 16]
    (client.work / "vqvae/evaluation.json").unlink()


def test_verbs_read_codes_from_the_hub(client, hub):  # noqa: F811
    first = hub.head("datasets/me/codes")
    small = ["--prior_config.hidden_channels", "8", "--prior_config.num_layers", "1", "--max_steps", "1"]
    train = ["train", "prior", *small, "--use_cpu", "true", "--report_to", "none", "--disable_tqdm", "true"]
    *_, codes, model = run(
        client,
        [*train, "--codes", "me/codes", "--output", "prior of the hub"],
        ["offline", *train, "--codes", f"me/codes@{first}", "--output", "prior offline"],
        ["evaluate", "prior of the hub", "--codes", "datasets/me/codes@main", "--output", "figures.json"],
        ["inspect", "me/codes", "--json"],
        ["inspect", "me/vqvae", "--json"],
    )
    assert '"rewritten": false' in codes
    assert '"kind": "autoencoder"' in model
    names = {
        "me/absent": "`hf-vq tokenize` writes one), and downloading it as a data set from the Hub failed",
        "me/vqvae": "me/vqvae is no folder of codes here",
        "me/codes@absent": "me/codes@absent is no folder of codes here",
        "me/codes@": "no such codes folder: me/codes@",
    }
    said = refused(client, *([*train, "--codes", name, "--output", "nothing"] for name in names))
    for words, errors in zip(names.values(), said, strict=True):
        assert words in errors
    assert not (client.work / "nothing").exists()


def test_who_made_codes_and_their_seals_survive_datasets(client, hub, travelled):  # noqa: F811
    names = [str(client.work / "again"), str(client.work / "twice"), "me/stock"]
    first, *others = client("codes_in", names=["me/codes", *names])
    roses = first["codes"][4:]  # files are read class by class
    assert travelled["codes"] == roses
    for found in others:
        assert found["tokenizer"] == first["tokenizer"]
        assert (found["codes"], found["class_names"]) == (roses, ["daisy", "rose"])
        assert set(found["sealed"]) == {False}
        assert set(found["rewritten"]) == {True}

    run(
        client,
        ["push", "again", "me/again", "--license", "mit", "--private"],
        ["push", "again", "me/stock", "--license", "mit"],  # one shard where there were three
    )
    assert "datasets/me/again" in hub.private
    for found in client("codes_in", names=["me/again", "me/stock"]):
        assert (found["codes"], found["tokenizer"]) == (roses, first["tokenizer"])
        assert (found["sealed"], found["rewritten"]) == ([True], [True])
        assert found["columns"] == ["codes", "class_labels", "caption"]
    for name in ("again", "stock"):
        assert "went through `datasets`" in hub.files(f"datasets/me/{name}")["README.md"].decode()
    assert sorted(hub.files("datasets/me/stock")) == [
        "README.md", "data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"
    ]  # fmt: skip


def test_what_is_lost_or_damaged_is_told(client, hub, travelled):  # noqa: F811
    damaged = client.work / "damaged"
    for name, content in hub.files("datasets/me/codes").items():
        (damaged / name).parent.mkdir(parents=True, exist_ok=True)
        (damaged / name).write_bytes(content)
    path = damaged / "data/train-00000-of-00002.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:40] + bytes([content[40] ^ 16]) + content[41:])
    folders = {
        damaged: f"{path} is damaged",
        client.work / "lost": "cast them to the features that they had",
        client.work / "on disk": "save_to_disk",
    }
    for folder, words in folders.items():
        for errors in refused(
            client,
            ["push", folder, "me/lost", "--license", "mit"],
            ["train", "prior", "--codes", folder, "--output", "nothing"],
        ):
            assert words in errors
    assert "datasets/me/lost" not in hub.repositories


def test_no_codes_are_pushed_that_are_not_whole_or_not_of_their_folder(client, hub):  # noqa: F811
    linked, cut = (shutil.copytree(client.work / "codes", client.work / name) for name in ("linked", "cut"))
    shard = "data/train-00001-of-00002.parquet"
    (linked / shard).unlink()
    (cut / shard).unlink()
    link(linked / shard, client.work / "codes" / shard)
    requests = len(hub.log)
    words = {
        ("codes",): "license is missing: say under which licence the codes may be used",
        (linked, "--license", "mit"): "outside the folder",
        (cut, "--license", "mit"): "is incomplete: 1 of 2 shards of train",
        ("codes", "--license", "mit", "--evaluation", "evaluation.json"): "evaluation='evaluation.json': codes holds",
        ("codes", "--license", "mit", "--tokenizer", "vqvae"): "tokenizer='vqvae' must be a repository",
        ("vqvae", "--license", "mit", "--tokenizer", "me/vqvae"): "holds a model",
        ("codes", "--license", "mit", "--tokenizer", "me/other"): "were made by another tokenizer",
    }
    said = refused(client, *(["push", folder, "me/refused", *options] for folder, *options in words))
    for expected, errors in zip(words.values(), said, strict=True):
        assert expected in errors
    assert "datasets/me/refused" not in hub.repositories
    assert not any(method == "POST" and "commit" in path for method, path in hub.log[requests:])


def test_codes_of_a_local_tokenizer_tell_no_path_and_may_be_told_its_repository(client, hub):  # noqa: F811
    run(
        client,
        ["tokenize", client.work / "vqvae", "--data", "flowers", "--output", "local codes"],
        ["push", "local codes", "me/local", "--license", "mit"],
        ["push", "local codes", "me/named", "--license", "mit", "--tokenizer", "me/vqvae", "--revision", "trial"],
    )
    repository = f"me/vqvae@{hub.head('me/vqvae')}"
    before, after = hub.files("datasets/me/local"), hub.files("datasets/me/named", "trial")
    assert hub.files("datasets/me/named") == {}
    assert not any(str(client.work).encode() in content for content in before.values())
    assert "path/to/tokenizer" in before["README.md"].decode()
    assert repository in after["README.md"].decode()
    found = client("codes_in", names=["me/codes", "me/local", "me/named@trial"])
    assert [codes["tokenizer"]["path"] for codes in found] == [repository, "", repository]
    assert found[1]["codes"] == found[2]["codes"] == found[0]["codes"]
    assert all(set(codes["sealed"]) == {True} for codes in found)
