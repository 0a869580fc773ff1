"""The key `quality` of a city file: which photographs are good enough."""

from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field


class Limit(NamedTuple):
    """A value of a measured column with which a photograph is rejected, and how that is said."""

    column: str
    operator: Literal["<", ">", "="]
    value: float | bool
    reason: str


class QualityRules(BaseModel):
    """What is asked of photographs; each of them is measured where a city file has the key.

    Attributes
    ----------
    min_sharpness, min_brightness, max_over_exposure, night
        Limits of what `photographs.quality.Quality` measures; `night` says whether
        photographs taken at night are good enough. None: no limit.
    tries
        How many images are tried for a point, the first included; if all of them are rejected,
        the point has none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    min_sharpness: float | None = Field(None, gt=0)
    min_brightness: float | None = Field(None, gt=0, lt=1)
    max_over_exposure: float | None = Field(None, ge=0, lt=1)
    night: bool = True
    tries: int = Field(3, ge=1, le=100)

    @property
    def limits(self) -> tuple[Limit, ...]:
        """The limits that are set."""
        limits: list[Limit] = []
        if self.min_sharpness is not None:
            reason = f"sharpness below {self.min_sharpness:g}"
            limits.append(Limit("sharpness", "<", self.min_sharpness, reason))
        if self.min_brightness is not None:
            reason = f"brightness below {self.min_brightness:g}"
            limits.append(Limit("brightness", "<", self.min_brightness, reason))
        if self.max_over_exposure is not None:
            reason = f"over-exposure above {self.max_over_exposure:g}"
            limits.append(Limit("over_exposure", ">", self.max_over_exposure, reason))
        if not self.night:
            limits.append(Limit("night", "=", True, "taken at night"))
        return tuple(limits)
