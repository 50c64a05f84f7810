import pytest
import torch
from networks import NETWORKS, images, network, quantized
from torch import nn

from qdrop.graph.split import segments
from qdrop.solver.activations.cache import ActivationCache, run_all

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["residual", "unet"])
def walk(request):
    """The segments of a network, and the cache before the first."""
    parts = segments(*quantized(network(request.param)))
    return parts, lambda: ActivationCache({"x": images()}, parts)


def known(cache, names):
    """Those of `names` that the cache holds."""
    held = set()
    for name in names:
        try:
            cache[name]
            held.add(name)
        except KeyError:
            pass
    return held


def test_begins_with_the_image_twice(walk):
    parts, new = walk
    pair = new()[parts[0].inputs[0]]
    assert torch.equal(pair.full, images()) and pair.full is pair.quantized


def test_holds_a_value_from_its_writer_to_its_last_reader(walk):
    parts, new = walk
    cache = new()
    everything = {name for part in parts for name in (*part.inputs, *part.outputs)}
    written = set(parts[0].inputs)
    for index, part in enumerate(parts):
        full = tuple(torch.full((2,), float(index)) for _ in part.outputs)
        quantized = tuple(-value for value in full)
        cache.advance(index, part, full, quantized)
        written |= set(part.outputs)
        still_read = {name for later in parts[index + 1 :] for name in later.inputs}
        assert known(cache, everything) == written & still_read
        for name in set(part.outputs) & still_read:
            assert (cache[name].full == index).all() and (cache[name].quantized == -index).all()
    assert known(cache, everything) == set()


def test_values_are_freed(walk):
    """Nothing else holds on to a value that no one reads any more."""
    import weakref

    parts, new = walk
    cache = new()
    references = []
    for index, part in enumerate(parts):
        full = tuple(torch.zeros(3) for _ in part.outputs)
        references += [weakref.ref(value) for value in full]
        cache.advance(index, part, full, full)
        del full
    assert all(reference() is None for reference in references)


def test_a_missing_output_is_an_error(walk):
    parts, new = walk
    with pytest.raises(ValueError, match="zip"):
        new().advance(0, parts[0], (), ())


@pytest.mark.parametrize("batch_size", [1, 3, 8, 100])
@pytest.mark.parametrize("name", NETWORKS)
def test_run_all(name, batch_size):
    model = network(name)
    with torch.no_grad():
        expected = model(images())
    (out,) = run_all(lambda x: (model(x),), (images(),), batch_size, CPU)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    assert not out.requires_grad


def test_run_all_of_several_values():
    class Swap(nn.Module):
        def forward(self, a, b):
            return b, a[:, :1] * 2, a.mean((1, 2, 3))

    a, b = images(5), images(5, size=4, seed=1)
    outs = run_all(Swap(), (a, b), 2, CPU)
    assert all(torch.equal(x, y) for x, y in zip(outs, (b, a[:, :1] * 2, a.mean((1, 2, 3))), strict=True))
