"""A segmentor of mmseg's as a graph."""

from typing import Any

from torch import Tensor, nn

from tools.finetuning.graph import Graph


class Labels(nn.Module):
    """Images `(B, 3, H, W)` to the likeliest class of each pixel and its share, both `(B, H, W)`; in one window."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        preprocessor = model.data_preprocessor
        self.turns = not preprocessor.channel_conversion  # the model was trained on BGR
        for name in ("mean", "std"):  # of pixels in 0 to 255, in the order of channels that the model takes
            self.register_buffer(name, getattr(preprocessor, name).detach().reshape(1, 3, 1, 1) / 255)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        size = tuple(images.shape[-2:])
        about = {"ori_shape": size, "img_shape": size, "pad_shape": size, "padding_size": [0, 0, 0, 0]}
        images = images.flip(1) if self.turns else images
        logits = self.model.encode_decode((images - self.mean) / self.std, [about])
        if logits.shape[1] == 1:  # two classes, told apart by one map
            foreground = logits[:, 0].sigmoid()
            is_one = foreground > self.model.decode_head.threshold
            return is_one.long(), foreground.where(is_one, 1 - foreground)
        scores, labels = logits.softmax(dim=1).max(dim=1)
        return labels, scores


def graph_of(model: Any) -> Graph:
    """Returns the graph of a segmentor."""
    return Graph(Labels(model).eval(), ("labels", "scores"))
