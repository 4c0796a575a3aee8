"""The HTTP interface: `uvicorn app.main:app`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

import numpy as np
from fastapi import Depends, FastAPI, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.core.config import ServiceConfig, load_config
from app.core.db import engine
from app.core.logs import log, logging_to
from app.core.models import Prediction
from app.ml.registry import Classifier, load_newest
from app.ml.task import FEATURES

Reading = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]


class PredictionRequest(BaseModel):
    features: Annotated[list[Reading], Field(min_length=FEATURES, max_length=FEATURES)]


class PredictionResponse(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: int
    created_at: datetime
    model_version: int
    label: str
    confidence: float
    needs_review: bool


class Health(BaseModel):
    model_version: int
    accuracy: float
    predictions: int


@dataclass(frozen=True)
class Service:
    config: ServiceConfig
    classifier: Classifier


@asynccontextmanager
async def lifespan(application: FastAPI) -> AsyncIterator[None]:
    config = load_config()
    with logging_to(config.log_file, config.log_level):
        classifier = load_newest(config.model_directory)
        application.state.service = Service(config, classifier)
        log.info("started", extra={"fields": {"model_version": classifier.card.version}})
        yield
        log.info("stopped")
    engine.dispose()


app = FastAPI(title="IIT ML Service", lifespan=lifespan)


def get_service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def get_session() -> Iterator[Session]:
    with Session(engine, expire_on_commit=False) as session:
        yield session


def get_time() -> datetime:
    return datetime.now(UTC)


ServiceParameter = Annotated[Service, Depends(get_service)]
SessionParameter = Annotated[Session, Depends(get_session)]
TimeParameter = Annotated[datetime, Depends(get_time)]


@app.post("/predict")
def predict(
    request: PredictionRequest, service: ServiceParameter, session: SessionParameter, now: TimeParameter
) -> PredictionResponse:
    """Answers once the prediction is committed, so that no answer is ever missing from the database."""
    card = service.classifier.card
    features = np.array([request.features], dtype=np.float32)
    probabilities = service.classifier.network.probabilities(features)[0]
    confidence = float(probabilities.max())
    prediction = Prediction(
        created_at=now,
        model_version=card.version,
        label=card.classes[int(probabilities.argmax())],
        confidence=confidence,
        needs_review=confidence < service.config.review_threshold,
        features=request.features,
    )
    session.add(prediction)
    session.commit()
    response = PredictionResponse.model_validate(prediction)
    log.info("prediction", extra={"fields": response.model_dump(mode="json", exclude={"created_at"})})
    return response


@app.get("/predictions")
def list_predictions(
    session: SessionParameter, limit: Annotated[int, Query(ge=1, le=1000)] = 20
) -> list[PredictionResponse]:
    """The latest predictions, newest first."""
    rows = session.scalars(select(Prediction).order_by(Prediction.id.desc()).limit(limit))
    return [PredictionResponse.model_validate(row) for row in rows]


@app.get("/health")
def health(service: ServiceParameter, session: SessionParameter) -> Health:
    card = service.classifier.card
    predictions = session.scalars(select(func.count()).select_from(Prediction)).one()
    return Health(model_version=card.version, accuracy=card.metrics.accuracy, predictions=predictions)
