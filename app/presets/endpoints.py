"""Presets over HTTP."""

from fastapi import APIRouter

from app.http.errors import NotFound
from trainers.configs.presets import Preset, load_presets
from trainers.runtime.error_codes import ErrorCode

router = APIRouter(prefix="/presets", tags=["presets"])


class PresetNotFound(NotFound):
    """No preset has this name."""

    code = ErrorCode.preset_not_found


@router.get("")
def list_presets() -> list[Preset]:
    """Settings that suit a kind of hardware or a family of models; a stage names them in `preset`."""
    return list(load_presets().values())


@router.get("/{name}")
def get_preset(name: str) -> Preset:
    """One preset with the fields that it gives to each kind of training stage."""
    preset = load_presets().get(name)
    if preset is None:
        raise PresetNotFound(f"There is no preset {name!r}.", hint="List them with GET /api/v1/presets.")
    return preset
