//! Muon, QK-Clip, AdamW and learning-rate schedules.
