"""JPEGs decoded at a half, a quarter or an eighth of their size where the crop keeps as many pixels as it needs.

libjpeg then computes fewer pixels from fewer frequencies. The pixels differ a little from those of the whole image: the
larger part of the filtering is done by the decoder, and the box moves to whole pixels of the smaller image.
"""

from __future__ import annotations

from PIL import Image

from pretrain.data.decode import UnreadableImage
from pretrain.data.sources import ImageList, lost

REDUCTIONS = (8, 4, 2)


class ReducedImage:
    """Takes the place of an image of which one crop is cut: it is decoded when the box is known.

    Args:
        images: readable ones.
        index: of the image.
        side: pixels of the crop after resizing, either way.

    Attributes:
        width, height: of the whole image in pixels.
    """

    def __init__(self, images: ImageList, index: int, side: int) -> None:
        self._images, self._index, self._side = images, index, side
        try:
            self.height, self.width = images.size(index)
        except (OSError, ValueError, SyntaxError) as error:
            raise lost(images.path(images.names[index]), error) from None

    def crop(self, box: tuple[int, int, int, int]) -> Image.Image:
        """Returns the box (left, top, right, bottom), with at least the crop's pixels if it has as many.

        Raises:
            ValueError: the image was readable at the start of the run and is not any more.
        """
        least = min(box[2] - box[0], box[3] - box[1])
        reduction = next((factor for factor in REDUCTIONS if least >= factor * self._side), 1)
        if reduction == 1:
            return self._images.read(self._index).crop(box)
        try:
            image = self._images.decode_reduced(self._index, reduction)
        except UnreadableImage as error:
            raise lost(self._images.path(self._images.names[self._index]), error) from None
        across, down = self.width / image.width, self.height / image.height  # 1 for what is no JPEG
        left, right = (round(place / across) for place in box[::2])
        top, bottom = (round(place / down) for place in box[1::2])
        return image.crop((left, top, right, bottom))
