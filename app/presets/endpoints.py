"""Presets over HTTP."""

from typing import Annotated

from fastapi import APIRouter, Path

from app.http.errors import NotFound
from app.http.paging import Page
from trainers.configs.presets import Preset, load_presets
from trainers.runtime.error_codes import ErrorCode

router = APIRouter(prefix="/presets", tags=["presets"])


class PresetNotFound(NotFound):
    """No preset has this name."""

    code = ErrorCode.preset_not_found


@router.get("")
def list_presets() -> Page[Preset]:
    """List the presets: settings for a kind of hardware or a model family, named by a stage's `preset`."""
    return Page(items=list(load_presets().values()), next=None)


@router.get("/{name}")
def get_preset(name: Annotated[str, Path(description="Name of the preset.")]) -> Preset:
    """Return a preset with the fields that it sets for each kind of training stage."""
    preset = load_presets().get(name)
    if preset is None:
        raise PresetNotFound(f"There is no preset {name!r}.", hint="List them with GET /api/v1/presets.")
    return preset
