"""Admission's policies behind the interface of `services.admission.policy`. All are pure."""
