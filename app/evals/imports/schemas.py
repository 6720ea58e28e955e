"""The report of an import, and the form that uploads its files."""

from enum import StrEnum

from pydantic import BaseModel, Field

from app.http.documents.multipart import multipart_form

IMPORT_FORM = multipart_form(
    ["file"],
    {
        "file": {
            "type": "array",
            "items": {"type": "string", "format": "binary"},
            "minItems": 1,
            "maxItems": 200,
            "description": "Files of exported objects, JSON or JSON Lines in any order, and "
            "files of rows. Repeat the field for each.",
        }
    },
)


class ImportOutcome(StrEnum):
    """What an import did with an object."""

    created = "created"
    unchanged = "unchanged"  # It was imported before, with the same content.
    different = "different"  # It was imported before with other content, which was kept.


class UnusableCriterion(BaseModel):
    """A criterion, or the schema of the items, by which no new run can judge here."""

    name: str = Field(description="Name of the grader, or `data_source_config`.")
    type: str = Field(description="Kind of the grader, or of the source.")
    reason: str = Field(description="Why it cannot be used, and what would allow it.")


class ImportedEvalView(BaseModel):
    """What became of an eval."""

    imported_id: str = Field(description="Its id at OpenAI.")
    id: str = Field(description="Its id here, `eval_…`.")
    name: str = Field(description="Name of the eval.")
    outcome: ImportOutcome = Field(description="What the import did.")
    criteria: int = Field(description="Number of its graders, all of which are kept.")
    unusable: list[UnusableCriterion] = Field(description="Graders that cannot judge new runs, with reasons.")


class ImportedRunView(BaseModel):
    """What became of a run."""

    imported_id: str = Field(description="Its id at OpenAI.")
    id: str = Field(description="Its id here, `evalrun_…`.")
    eval_id: str = Field(description="Id of its eval here.")
    status: str = Field(description="How it ended at OpenAI; one that had not ended is shown as `canceled`.")
    outcome: ImportOutcome = Field(description="What the import did.")
    items_created: int = Field(0, description="Output items that were imported.")
    items_unchanged: int = Field(0, description="Output items that had been imported before.")
    items_total: int = Field(description="Output items that the run has by its own count.")


class ImportedRowsView(BaseModel):
    """What became of a file of rows."""

    filename: str = Field(description="Name of the file.")
    id: str = Field(description="Id of the file here, which runs can name as their source.")
    rows: int = Field(description="Number of rows.")
    outcome: ImportOutcome = Field(description="What the import did.")


class EvalImportView(BaseModel):
    """What an import did, object by object."""

    evals: list[ImportedEvalView] = Field(description="The evals of the files.")
    runs: list[ImportedRunView] = Field(description="The runs of the files, with their output items.")
    files: list[ImportedRowsView] = Field(description="The files of rows.")
