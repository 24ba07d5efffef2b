"""What the Ray Serve application is built from."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Arguments(BaseModel):
    """What the application is built from; in a Serve config, its `args`."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model_id: str = Field(description="the name by which clients ask for the model")
    model_source: str = Field(description="a folder on every node, or a hub's name")
    replicas: int = Field(default=1, ge=1, description="how many engines")
    engine_kwargs: dict[str, Any] = Field(default={}, description="vLLM's arguments, by name")
    settings: str | dict[str, Any] | None = Field(
        default=None,
        description="what the scheduler of every replica goes by: a settings file on every node, "
        "or settings inline, which Serve brings to every replica as `user_config`; both may change "
        "while serving; what engine_kwargs say of them counts more",
    )
    router: dict[str, Any] | None = Field(
        default={},
        description="arguments of PredictedWorkRouter.initialize_state; null for Serve's own",
    )
    environment: dict[str, str] = Field(default={}, description="variables for the replicas")
    cpus: float | None = Field(
        default=None, description="CPU cores that a replica asks for instead of a GPU"
    )
    deployment: dict[str, Any] = Field(
        default={}, description="options of the replicas' deployment, such as autoscaling_config"
    )
