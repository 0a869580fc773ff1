"""The key `views` of a city file: which views of panoramas are made."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

COMPASS_DIRECTIONS = {"north": 0, "east": 90, "south": 180, "west": 270}
RELATIVE_DIRECTIONS = {"front": 0, "right": 90, "back": 180, "left": 270}

Direction = (
    Literal["front", "right", "back", "left", "north", "east", "south", "west"]
    | Annotated[float, Field(ge=-360, le=360)]
)
HeadingAt = Literal["centre", "left"]


class Views(BaseModel):
    """Views of panoramas: perspective pictures in some directions.

    Attributes
    ----------
    directions
        Names, or headings in degrees clockwise from north.
    relative_to
        What front, right, back and left are seen from: the street of the image's point, in
        that direction which the camera faces, or the camera itself.
    fov
        Horizontal field of view in degrees.
    pitch
        Degrees above the horizon; below it is negative.
    width, height
        Pixels.
    heading_at
        Where in a panorama its compass angle lies: in the middle, as Mapillary's own viewer
        has it, or at the left edge.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    directions: tuple[Direction, ...] = Field(("front", "right", "back", "left"), min_length=1)
    relative_to: Literal["street", "camera"] = "street"
    fov: float = Field(90, ge=10, le=150)
    pitch: float = Field(0, ge=-90, le=90)
    width: int = Field(1024, ge=16, le=8192)
    height: int = Field(1024, ge=16, le=8192)
    heading_at: HeadingAt = "centre"
