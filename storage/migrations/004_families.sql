-- The family of a version and the kind of its base are noted when it is made, so that a recipe may
-- change its name or its family later. The recipes that there were until now have theirs for ever.
ALTER TABLE students ADD COLUMN family TEXT;
ALTER TABLE students ADD COLUMN base_kind TEXT;
UPDATE students SET
    family = CASE recipe WHEN 'causal-lora' THEN 'causal' ELSE 'head' END,
    base_kind = CASE recipe WHEN 'causal-lora' THEN 'chat_model' ELSE 'encoder' END;
