"""The settings of a process, read once from `TUNESMITH_*` variables and `.env`."""

from functools import lru_cache

from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from app.settings.clouds import CloudSettings
from app.settings.engines import EngineSettings
from app.settings.hosts import CloudHostSettings
from app.settings.http import HttpSettings
from app.settings.joining import JoiningSettings
from app.settings.named_models import EvaluationEndpoint, FineTuningBase, NamedModelSettings, TokenPrices
from app.settings.programs import ProgramSettings
from app.settings.reports import ReportSettings
from app.settings.retention import RetentionSettings, SucceededCheckpoints
from app.settings.scheduling import SchedulingSettings
from app.settings.secret_files import SecretFiles
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
    CloudHostSettings,
    CloudSettings,
    JoiningSettings,
):
    """Settings of the service and its workers; the defaults need no server, GPU or network.

    The reference has a section for each base class, in this order.
    """

    model_config = SettingsConfigDict(env_prefix="TUNESMITH_", env_file=".env", extra="ignore")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read secrets also from the files that `TUNESMITH_…_FILE` names."""
        files = SecretFiles(settings_cls, env_settings, dotenv_settings)
        return init_settings, env_settings, dotenv_settings, files


@lru_cache
def get_settings() -> Settings:
    """Return the process's settings."""
    return Settings()
