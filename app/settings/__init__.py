"""The settings of a process, read once from `TUNESMITH_*` variables and `.env`."""

from functools import lru_cache

from pydantic_settings import SettingsConfigDict

from app.settings.engines import EngineSettings
from app.settings.http import HttpSettings
from app.settings.named_models import EvaluationEndpoint, FineTuningBase, NamedModelSettings, TokenPrices
from app.settings.programs import ProgramSettings
from app.settings.reports import ReportSettings
from app.settings.retention import RetentionSettings, SucceededCheckpoints
from app.settings.scheduling import SchedulingSettings
from app.settings.storage import StorageSettings

__all__ = [
    "EvaluationEndpoint",
    "FineTuningBase",
    "Settings",
    "SucceededCheckpoints",
    "TokenPrices",
    "get_settings",
]


class Settings(
    StorageSettings,
    HttpSettings,
    SchedulingSettings,
    ProgramSettings,
    NamedModelSettings,
    EngineSettings,
    RetentionSettings,
    ReportSettings,
):
    """Settings of the service and its workers; the defaults need no server, GPU or network.

    The reference has a section for each base class, in this order.
    """

    model_config = SettingsConfigDict(env_prefix="TUNESMITH_", env_file=".env", extra="ignore")


@lru_cache
def get_settings() -> Settings:
    """Return the process's settings."""
    return Settings()
