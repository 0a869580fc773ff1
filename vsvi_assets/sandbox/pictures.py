"""Pictures of streets, drawn on request."""

import io

from PIL import Image

from vsvi_assets.sandbox.world import StreetImage


def draw(image: StreetImage, size: str) -> bytes:
    """Draw the picture of an image as a JPEG."""
    width = image.width if size == "original" else int(size)
    picture = Image.new(
        "RGB", (width, width * image.height // image.width), (image.id % 255, 90, 90)
    )
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
