"""What the `manifest` part of an uploaded data set may say."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.domain.records import Name
from app.intake.preprocess import Preprocess

Labels = Annotated[list[Annotated[str, Field(min_length=1, max_length=256)]], Field(min_length=1, max_length=100_000)]
Column = Annotated[str, Field(min_length=1, max_length=1024)]
Share = Annotated[float, Field(gt=0, lt=1)]


class Shares(BaseModel):
    """How much of the whole goes where; for splits that the file brings itself it means nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    train: Share | None = None
    val: Share = 0.16
    test: Share = 0.2

    @model_validator(mode="after")
    def _add_up(self) -> Self:
        if self.val + self.test >= 1:
            raise ValueError("val and test leave nothing to train with")
        if self.train is not None and abs(self.train + self.val + self.test - 1) > 1e-6:
            raise ValueError("train, val and test must add up to 1")
        return self


class DatasetManifest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Name
    kind: Literal["arrays", "images", "table"]
    splits: Shares = Field(Shares(), description="shares of what is cut off, stratified with seed 0")
    labels: Labels | None = Field(None, description="names of the classes from 0; for images, the order of the folders")
    classes: int | None = Field(None, ge=1, le=1_000_000, description="how many classes there are")
    preprocess: Preprocess | None = Field(None, description="images: what makes a row of a picture")
    target: Column | None = Field(None, description="table: the column to predict")
    features: Annotated[list[Column], Field(min_length=1, max_length=100_000)] | None = Field(
        None, description="table: the columns to predict from; all others unless given"
    )
    task: Literal["classification", "regression"] | None = Field(
        None, description="whether the target is a class or a number; by its type unless given"
    )

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        if self.kind == "table" and self.target is None:
            raise ValueError("a table needs `target`: the column to predict")
        if self.kind != "table" and (self.target is not None or self.features is not None):
            raise ValueError("`target` and `features` belong to kind 'table'")
        if self.kind != "images" and self.preprocess is not None:
            raise ValueError("`preprocess` belongs to kind 'images': arrays and tables are what the model takes")
        if self.kind == "images" and self.task == "regression":
            raise ValueError("images are sorted into folders by class: they are no regression")
        if self.features is not None and self.target in self.features:
            raise ValueError("`target` must not be among `features`")
        if self.labels is not None and len(set(self.labels)) != len(self.labels):
            raise ValueError("a label is there twice")
        if self.labels is not None and self.classes is not None and len(self.labels) != self.classes:
            raise ValueError(f"{len(self.labels)} labels for {self.classes} classes")
        return self
