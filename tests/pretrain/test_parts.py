"""Corpus, model and files, each alone."""

import os

import pytest
import torch


def test_a_folder_of_text_is_read_without_its_binary_files(example, tmp_path):
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a.txt").write_text("a" * 1000)
    (folder / "b.bin").write_bytes(b"\0" * 1000)
    corpus = example("data").load_corpus(folder, context=8)
    assert (corpus.train == ord("a")).all() and corpus.train.numel() == 950 and corpus.held_out.numel() == 50


def test_a_failed_write_leaves_the_old_file(example, tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(file):
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(example("errors").WriteError, match="not written: disk full; the one before stays"):
        example("checkpoint").write_atomically(path, fail)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("size, low, high", [("tiny", 1e6, 3e6), ("gpt2", 123e6, 125e6), ("1b", 0.9e9, 1.1e9)])
def test_sizes_have_the_parameters_their_name_says(example, size, low, high):
    with torch.device("meta"):
        model = example("model").GPT(example("config").SIZES[size].shape)
    assert low < sum(parameter.numel() for parameter in model.parameters()) < high


def test_a_byte_is_predicted_from_earlier_ones_only(example):
    model = example("model").GPT(example("config").SIZES["micro"].shape)
    tokens = torch.randint(256, (1, 32))
    embedded = model.embedding(tokens).detach().requires_grad_()
    x = embedded
    for block in model.blocks:
        x = block(x, model.cos, model.sin)
    x[0, 10].sum().backward()
    touched = embedded.grad[0].abs().sum(-1) > 0
    assert touched[:11].all() and not touched[11:].any()
