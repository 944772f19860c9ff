"""torch's tensors in, and our arrays out, without a copy; what torch does not share is refused with advice."""

from __future__ import annotations

import numpy as np
import pytest
from toys import quarters, small_classifier, small_net

from xpcnn import ArrayDataset, DataError, batch_last, conv2d
from xpcnn.backend import as_array

torch = pytest.importorskip("torch", reason="torch is not installed (pip install torch)")
pytestmark = pytest.mark.outside


@pytest.mark.parametrize("kind", ["uint8", "int64", "float16", "float32", "float64", "bool"])
def test_memory_is_shared_both_ways(kind):
    tensor = torch.zeros((4, 3, 2), dtype=getattr(torch, kind))
    for view in (tensor, tensor.permute(2, 0, 1), tensor[:, ::2]):
        array = as_array(view)
        assert array.__array_interface__["data"][0] == view.data_ptr()
        assert (array.shape, str(array.dtype)) == (tuple(view.shape), kind)
        view[0, 0, 0] = 1
        assert array[0, 0, 0] == 1
        view[0, 0, 0] = 0


def test_a_data_set_is_a_view_of_the_tensor():
    images = torch.rand(6, 1, 8, 8)
    dataset = ArrayDataset(images, torch.arange(6) % 3)
    assert dataset.x.__array_interface__["data"][0] == images.data_ptr()
    images[4] = 7.0
    assert (dataset[4][0] == 7.0).all()


def test_training_on_tensors_and_handing_predictions_back():
    images, labels = quarters(60)
    x, t = torch.from_numpy(images), torch.from_numpy(labels)
    ours, theirs = small_classifier(), small_classifier()
    ours.fit(images, labels, epochs=4, verbose=False)
    theirs.fit(x, t, epochs=4, validation=(x[:9], t[:9]), verbose=False)
    p = theirs.predict_proba(x)
    np.testing.assert_array_equal(p, ours.predict_proba(images))
    back = torch.from_dlpack(p)
    assert back.data_ptr() == p.__array_interface__["data"][0]
    predicted = torch.from_dlpack(theirs.predict(x))
    assert float((predicted == t).float().mean()) == theirs.score(x, t) > 0.9
    assert torch.equal(back.argmax(dim=1), predicted)
    assert torch.equal(torch.from_numpy(theirs.predict(x[0])), predicted[:1])


def test_outputs_of_nets_and_functions_are_tensors_without_a_copy():
    net = small_net()
    net.build((1, 8, 8))
    x, w = torch.rand(5, 1, 8, 8), torch.rand(2, 1, 3, 3)
    for y in (net(x), conv2d(x, w), batch_last(x)):
        tensor = torch.from_dlpack(y)
        y[0, 0] = 5.0
        assert (tensor[0, 0] == 5.0).all()
    torch.testing.assert_close(torch.from_dlpack(conv2d(x, w)), torch.nn.functional.conv2d(x, w))


REFUSED = {
    "it requires grad": (lambda x: x.requires_grad_(), lambda x: x.detach()),
    "it is sparse": (lambda x: x.to_sparse(), lambda x: x.to_dense()),
    "bfloat16": (lambda x: x.bfloat16(), lambda x: x.float()),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_torch_does_not_share_is_usable_as_the_error_says(why):
    spoil, mend = REFUSED[why]
    net = small_net()
    net.build((1, 8, 8))
    x = spoil(torch.ones(2, 1, 8, 8))
    for use in (net, batch_last, lambda x: ArrayDataset(x, [0, 1])):
        with pytest.raises(DataError, match=rf"^cannot use this Tensor \(.*\): .* if {why}"):
            use(x)
    assert net(mend(x)).shape == (2, 3)


def test_a_tensor_on_a_device_nobody_reaches():
    with pytest.raises(DataError, match=r"meta.*x\.cpu\(\)"):
        batch_last(torch.empty(2, 1, 8, 8, device="meta"))
