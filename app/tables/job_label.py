"""Labels of jobs as rows: what a list filtered by a label walks along."""

from sqlmodel import Field, SQLModel


class JobLabel(SQLModel, table=True):
    """One label of one job; the primary key is the index by which jobs of a label are listed by age."""

    __tablename__ = "job_label"

    key: str = Field(primary_key=True)
    value: str = Field(primary_key=True)
    job_id: str = Field(primary_key=True, foreign_key="job.id")
