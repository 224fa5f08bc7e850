"""The projection heads of v1 and v2, layer by layer."""

from torch import nn

from moco.contrast.heads import count_features, projection_head


def layers(head: nn.Module) -> list[tuple[object, ...]]:
    """Kind of each layer; of a linear one its widths too, and whether it has a bias."""
    each = head if isinstance(head, nn.Sequential) else [head]
    return [
        ("Linear", layer.in_features, layer.out_features, layer.bias is not None)
        if isinstance(layer, nn.Linear)
        else (type(layer).__name__,)
        for layer in each
    ]


def test_v1_has_a_fully_connected_layer():
    assert layers(projection_head("linear", 20, 8, None)) == [("Linear", 20, 8, True)]


def test_v2_has_two_with_relu_between_as_wide_as_the_features_if_nothing_is_given():
    expected = [("Linear", 20, 20, True), ("ReLU",), ("Linear", 20, 8, True)]
    assert layers(projection_head("mlp", 20, 8, None)) == expected
    expected = [("Linear", 20, 12, True), ("ReLU",), ("Linear", 12, 8, True)]
    assert layers(projection_head("mlp", 20, 8, 12)) == expected


def test_the_features_are_as_many_as_the_last_layer_has_channels():
    assert count_features(nn.Sequential(nn.Linear(2, 9), nn.Conv2d(3, 7, 1), nn.Flatten())) == 7


def test_the_features_are_as_many_as_the_encoder_declares():
    encoder = nn.Sequential(nn.Linear(2, 9), nn.Unflatten(1, (3, 3)))
    encoder.num_features = 3
    assert count_features(encoder) == 3
