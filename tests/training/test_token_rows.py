"""Training the used rows of the token table is training the table."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModel

from codiemb.training.token_rows import UsedRowsEmbedding, install, remove

USED = [0, 2, 3, 10, 11, 12, 40]


@pytest.fixture
def network(encoder_directory) -> nn.Module:
    return AutoModel.from_pretrained(encoder_directory, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def steps(network: nn.Module, count: int = 5) -> None:
    """Some steps of AdamW with clipping on ids of `USED`, padding among them."""
    generator = torch.Generator().manual_seed(1)
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-2, weight_decay=0.0)
    network.train()
    for _ in range(count):
        ids = torch.tensor(USED)[torch.randint(0, len(USED), (4, 9), generator=generator)]
        loss = network(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.pow(3).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad()


def test_used_rows_train_as_the_whole_table(network):
    whole, before = copy.deepcopy(network), network.get_input_embeddings().weight.detach().clone()
    steps(whole)
    rows = install(network, USED)
    steps(network)
    remove(network, rows)
    torch.testing.assert_close(network.state_dict(), whole.state_dict(), rtol=0, atol=1e-6)
    table = network.get_input_embeddings().weight
    moved = (table != before).any(dim=1).nonzero().flatten().tolist()
    assert moved == [token for token in USED if token != 0]  # the padding row and the unused ones stay


def test_only_the_used_rows_have_gradients_and_optimizer_state(network):
    whole = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    table = network.get_input_embeddings().weight
    install(network, USED)
    trainable = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    assert trainable == whole - (len(table) - len(USED)) * 32


def test_evaluation_reads_the_whole_table_with_the_trained_rows(network):
    rows = install(network, USED)
    steps(network)
    trained = rows.rows.detach().clone()
    network.eval()
    everything = torch.arange(rows.original.num_embeddings)
    read = rows(everything)
    torch.testing.assert_close(read[USED], trained, rtol=0, atol=0)
    torch.testing.assert_close(read, rows.original.weight, rtol=0, atol=0)


def test_training_does_not_write_the_table_until_told(network):
    rows = install(network, USED)
    before = rows.original.weight.detach().clone()
    steps(network)
    assert torch.equal(rows.original.weight, before)
    rows.write_back()
    assert not torch.equal(rows.original.weight, before)


def test_read_again_takes_over_a_loaded_table(network):
    rows = install(network, USED)
    with torch.no_grad():
        rows.original.weight.fill_(0.5)
    rows.read_again()
    assert (rows.rows == 0.5).all()


def test_remove_gives_the_own_table_back(network):
    table = network.get_input_embeddings()
    names = set(network.state_dict())
    rows = install(network, USED)
    assert isinstance(network.get_input_embeddings(), UsedRowsEmbedding)
    remove(network, rows)
    assert network.get_input_embeddings() is table
    assert set(network.state_dict()) == names


def test_an_id_outside_the_used_ones_is_an_error_in_training():
    rows = UsedRowsEmbedding(nn.Embedding(10, 4), [1, 2])
    with pytest.raises(IndexError):
        rows(torch.tensor([[1, 5]]))


@pytest.mark.parametrize("used", [[], [-1, 2], [3, 10]])
def test_ids_that_are_no_rows_are_an_error(used):
    with pytest.raises(ValueError, match="expected some of 0 to 9"):
        UsedRowsEmbedding(nn.Embedding(10, 4), used)


def test_a_table_that_does_more_than_look_up_is_an_error():
    class Scaled(nn.Embedding):
        def forward(self, input_ids):
            return super().forward(input_ids) * 4

    with pytest.raises(ValueError, match="token_embeddings: all"):
        UsedRowsEmbedding(Scaled(10, 4), [1])
