import pytest
import torch
from torch.nn.functional import cross_entropy
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from moco.encoders.build import build_encoder
from moco.encoders.resnet import use_small_stem
from moco.runtime.errors import UserError
from moco.transfer.segmentation.fcn import FCN, pixel_loss
from tests.ranks import on_ranks


def small(block=BasicBlock, classes=3, width=8):
    torch.manual_seed(0)
    return FCN(ResNet(block, [1, 1, 1, 2]), classes, width)


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_logits_have_the_image_s_size_and_the_classifier_a_sixteenth(block):
    fcn, seen = small(block).eval(), []
    fcn.classifier.register_forward_hook(lambda _, inputs, output: seen.append(output.shape))
    images = torch.randint(0, 256, (2, 3, 65, 97), dtype=torch.uint8)
    assert fcn(images).shape == (2, 3, 65, 97)
    assert seen == [(2, 3, 5, 7)]
    assert fcn.stride == 16


def test_a_small_stem_keeps_four_times_as_much():
    encoder = ResNet(BasicBlock, [1, 1, 1, 1])
    use_small_stem(encoder)
    fcn, seen = FCN(encoder, 3, 8).eval(), []
    fcn.classifier.register_forward_hook(lambda _, inputs, output: seen.append(output.shape))
    fcn(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    assert (fcn.stride, seen) == (4, [(1, 3, 8, 8)])


def test_what_a_position_sees_is_that_of_the_published_dilations():
    """conv5 with two basic blocks at dilation 2: 4 * 2 to each side; the head: 2 * 6."""
    fcn = small().eval()
    for module in fcn.modules():  # every path counts, and none cancels another
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.ones_(module.weight)
    conv4 = torch.ones(1, 256, 45, 45, requires_grad=True)
    fcn.classifier(fcn.head(fcn.encoder.layer4(conv4)))[0, 0, 22, 22].backward()
    seen = (conv4.grad[0, 0] != 0).nonzero()
    assert seen.amin(0).tolist() == [22 - 8 - 12] * 2
    assert seen.amax(0).tolist() == [22 + 8 + 12] * 2


def test_all_classes_start_about_as_likely_and_the_encoder_as_it_was():
    encoder = build_encoder("resnet18")
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    fcn = FCN(encoder, 5, 8).eval()
    assert all(torch.equal(value, before[name]) for name, value in fcn.encoder.state_dict().items())
    probabilities = fcn(torch.randint(0, 256, (1, 3, 33, 33), dtype=torch.uint8)).softmax(1)
    assert (probabilities - 0.2).abs().max() < 0.1
    assert fcn.head[0].weight.detach().std() == pytest.approx((2 / (8 * 9)) ** 0.5, rel=0.05)


def test_the_loss_is_the_mean_over_the_pixels_that_are_not_ignored():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5), dtype=torch.uint8)
    labels[0, 1:] = 255
    expected = sum(
        cross_entropy(logits[n, :, y, x], labels[n, y, x].long()) for n, y, x in (labels != 255).nonzero().tolist()
    ) / int((labels != 255).sum())
    assert pixel_loss(logits, labels).item() == pytest.approx(float(expected), rel=1e-5)


def test_a_batch_of_nothing_but_ignored_pixels_moves_nothing():
    logits = torch.randn(1, 3, 4, 5, requires_grad=True)
    loss = pixel_loss(logits, torch.full((1, 4, 5), 255, dtype=torch.uint8))
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()


def test_a_few_steps_lower_the_loss():
    fcn = small(classes=2)
    images = torch.zeros(2, 3, 48, 48, dtype=torch.uint8)
    images[:, :, :, 24:] = 255
    labels = (images[:, 0] > 0).byte()
    labels[:, :4] = 255
    optimizer = torch.optim.SGD(fcn.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(16):
        loss = pixel_loss(fcn(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert all(parameter.grad is not None for parameter in fcn.parameters())
    assert losses[1] < losses[0]
    assert losses[-1] < 0.6 * losses[0]


def test_checkpointing_changes_no_gradient():
    images, labels = torch.randint(0, 256, (2, 3, 33, 33), dtype=torch.uint8), torch.randint(0, 3, (2, 33, 33))
    gradients = []
    for checkpointing in (False, True):
        fcn = small()
        fcn.checkpointing = checkpointing
        pixel_loss(fcn(images), labels).backward()
        gradients.append([parameter.grad for parameter in fcn.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)


def test_another_family_is_refused():
    with pytest.raises(UserError, match="needs a ResNet's stages"):
        FCN(build_encoder("tiny"), 3)


def test_two_ranks_are_one(tmp_path):
    """Loss, its gradient and the confusion matrix of two gloo ranks with unequal numbers of ignored pixels."""
    on_ranks(2, "tests.transfer.segmentation.ranks", tmp_path)
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["equal", "equal"]
