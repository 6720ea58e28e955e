"""Labels of jobs as rows, for lists that are filtered by a label."""

from sqlmodel import Field, SQLModel


class JobLabel(SQLModel, table=True):
    """One label of one job; the primary key is the index that lists the jobs with a label by age."""

    __tablename__ = "job_label"

    key: str = Field(primary_key=True)
    value: str = Field(primary_key=True)
    job_id: str = Field(primary_key=True, foreign_key="job.id")
