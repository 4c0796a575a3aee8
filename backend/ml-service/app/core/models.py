"""The tables, in types that SQLite, PostgreSQL and MySQL share."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import JSON, BigInteger, DateTime, Dialect, Double, Integer, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

_RowId = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows by itself only in an INTEGER key


class UtcDateTime(TypeDecorator[datetime]):
    """Times with a zone in Python, UTC in the database, whether or not the database keeps zones."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC)


class Base(DeclarativeBase):
    """What `create_all` knows of."""


class Sample(Base):
    """Readings whose state somebody has looked at: what the classifier learns from."""

    __tablename__ = "samples"

    id: Mapped[int] = mapped_column(_RowId, primary_key=True)
    label: Mapped[str] = mapped_column(String(20))
    features: Mapped[list[float]] = mapped_column(JSON)


class TrainingRun(Base):
    """How each version of the model came to be."""

    __tablename__ = "training_runs"

    id: Mapped[int] = mapped_column(_RowId, primary_key=True)
    started_at: Mapped[datetime] = mapped_column(UtcDateTime)
    seconds: Mapped[float] = mapped_column(Double)
    model_version: Mapped[int]
    seed: Mapped[int]
    samples: Mapped[int]
    accuracy: Mapped[float] = mapped_column(Double)
    sha256: Mapped[str] = mapped_column(String(64))


class Prediction(Base):
    """One answer that the service gave."""

    __tablename__ = "predictions"

    id: Mapped[int] = mapped_column(_RowId, primary_key=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    model_version: Mapped[int]
    label: Mapped[str] = mapped_column(String(20))
    confidence: Mapped[float] = mapped_column(Double)
    needs_review: Mapped[bool]
    features: Mapped[list[float]] = mapped_column(JSON)
