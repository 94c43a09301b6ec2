"""Gemini through Vertex AI: Google's application-default credentials, a project and a location instead of an API key.

gcloud auth application-default login, or GOOGLE_APPLICATION_CREDENTIALS=key.json
    -> a token valid for an hour, which the SDK renews
POST .../projects/PROJECT/locations/LOCATION/publishers/google/models/MODEL:generateContent
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from ropd_jax.teacher.clients.errors import ConfigurationError, TeacherError, TransientError

_SCOPE = "https://www.googleapis.com/auth/cloud-platform"


@dataclasses.dataclass(frozen=True)
class VertexAccount:
    """The account data that the SDK needs for Vertex AI."""

    credentials: Any
    project: str
    location: str

    @classmethod
    def found(cls, *, project: str = "", location: str = "") -> VertexAccount:
        """The account of this machine's application-default credentials.

        Raises:
            ConfigurationError: there are no readable credentials, or no project is known.
        """
        import google.auth
        from google.auth.exceptions import GoogleAuthError

        try:
            credentials, own = google.auth.default(scopes=[_SCOPE])
        except (GoogleAuthError, OSError, ValueError) as error:
            raise ConfigurationError(
                f"Vertex AI needs application-default credentials ({type(error).__name__}). Run gcloud auth "
                "application-default login, or set GOOGLE_APPLICATION_CREDENTIALS to the file of a service account; "
                "or use an API key with teacher.vertexai=False",
                cause="missing_key",
            ) from None  # the message can quote the file
        project = project or os.environ.get("GOOGLE_CLOUD_PROJECT", "") or own or ""
        if not project:
            raise ConfigurationError(
                "Vertex AI needs a project, and neither the config nor the credentials name one; set teacher.project",
                cause="missing_project",
            )
        return cls(credentials, project, location or os.environ.get("GOOGLE_CLOUD_LOCATION", "") or "global")

    def client_options(self) -> dict[str, Any]:
        """Arguments for the SDK's client."""
        return {"credentials": self.credentials, "project": self.project, "location": self.location}


def account_errors() -> tuple[type[Exception], ...]:
    """Errors of the library that renews the credentials."""
    from google.auth.exceptions import GoogleAuthError

    return (GoogleAuthError,)


def account_failure(error: Exception) -> TeacherError:
    """The typed failure of a renewal; the message is not shown, because it can quote the credentials."""
    from google.auth.exceptions import TransportError

    if isinstance(error, TransportError) or getattr(error, "retryable", False):
        return TransientError("gemini: cannot renew the Vertex AI credentials now", cause="connection")
    return ConfigurationError(
        "gemini: Google refuses to renew the application-default credentials of Vertex AI. Run gcloud auth "
        "application-default login again, or check the service account",
        cause="unauthorized",
    )
