-- An SQLite database as the eleven first migrations made it, with a few invented rows.
BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL,
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('f4a07c1e58d2');
CREATE TABLE api_token (
	id VARCHAR(32) NOT NULL,
	user_id VARCHAR(32) NOT NULL,
	name VARCHAR(80) NOT NULL,
	secret_hash VARCHAR(64) NOT NULL,
	created_at DATETIME NOT NULL, used_at DATETIME,
	CONSTRAINT pk_api_token PRIMARY KEY (id),
	CONSTRAINT fk_api_token_user_id_user FOREIGN KEY(user_id) REFERENCES user (id) ON DELETE CASCADE,
	CONSTRAINT uq_api_token_secret_hash UNIQUE (secret_hash)
);
INSERT INTO "api_token" VALUES('cccccccccccccccccccccccccccccccc','aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','script','0000000000000000000000000000000000000000000000000000000000000000','2026-11-27 09:00:00.000000','2026-11-27 09:05:00.000000');
CREATE TABLE attempt (
	id INTEGER NOT NULL,
	scan_id VARCHAR(32),
	run_id VARCHAR(32),
	started_at DATETIME,
	ended_at DATETIME NOT NULL,
	outcome TEXT NOT NULL,
	CONSTRAINT pk_attempt PRIMARY KEY (id),
	CONSTRAINT fk_attempt_scan_id_scan FOREIGN KEY(scan_id) REFERENCES scan (id) ON DELETE CASCADE,
	CONSTRAINT fk_attempt_run_id_training_run FOREIGN KEY(run_id) REFERENCES training_run (id) ON DELETE CASCADE
);
INSERT INTO "attempt" VALUES(1,'44444444444444444444444444444444',NULL,'2026-11-27 09:00:00.000000','2026-11-27 09:05:00.000000','It was cancelled.');
CREATE TABLE audit_event (
	id INTEGER NOT NULL,
	at DATETIME NOT NULL,
	act VARCHAR(24) NOT NULL,
	actor_id VARCHAR(32),
	object_id VARCHAR(32),
	address VARCHAR(45) NOT NULL,
	CONSTRAINT pk_audit_event PRIMARY KEY (id)
);
INSERT INTO "audit_event" VALUES(1,'2026-11-27 09:00:00.000000','scan submitted','aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','44444444444444444444444444444444','192.0.2.1');
CREATE TABLE dataset (
	name VARCHAR(80) NOT NULL,
	imported_by_id VARCHAR(32),
	archive_key VARCHAR(200) NOT NULL,
	fingerprint VARCHAR(64),
	exploration JSON,
	contact_sheet_key VARCHAR(200),
	id VARCHAR(32) NOT NULL,
	status VARCHAR(16) NOT NULL,
	attempts INTEGER NOT NULL,
	counted_deaths INTEGER NOT NULL,
	death_counts BOOLEAN NOT NULL,
	lease_owner VARCHAR(100),
	lease_expires_at DATETIME,
	progress DOUBLE NOT NULL,
	stage VARCHAR(200),
	error TEXT,
	created_at DATETIME NOT NULL,
	started_at DATETIME,
	finished_at DATETIME, queued_at DATETIME DEFAULT '1970-01-01 00:00:00.000000' NOT NULL,
	CONSTRAINT pk_dataset PRIMARY KEY (id),
	CONSTRAINT fk_dataset_imported_by_id_user FOREIGN KEY(imported_by_id) REFERENCES user (id) ON DELETE SET NULL,
	CONSTRAINT uq_dataset_name UNIQUE (name)
);
INSERT INTO "dataset" VALUES('Phantoms','aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','datasets/1.zip','3333333333333333333333333333333333333333333333333333333333333333','{"images": 4}','sheets/1.png','11111111111111111111111111111111','done',1,0,1,NULL,NULL,1.0,NULL,NULL,'2026-11-27 09:00:00.000000','2026-11-27 09:00:00.000000','2026-11-27 09:05:00.000000','2026-11-27 09:00:00.000000');
CREATE TABLE heatmap (
	prediction_id VARCHAR(32) NOT NULL,
	image_key VARCHAR(200),
	id VARCHAR(32) NOT NULL,
	status VARCHAR(16) NOT NULL,
	attempts INTEGER NOT NULL,
	counted_deaths INTEGER NOT NULL,
	death_counts BOOLEAN NOT NULL,
	lease_owner VARCHAR(100),
	lease_expires_at DATETIME,
	progress DOUBLE NOT NULL,
	stage VARCHAR(200),
	error TEXT,
	created_at DATETIME NOT NULL,
	started_at DATETIME,
	finished_at DATETIME, queued_at DATETIME DEFAULT '1970-01-01 00:00:00.000000' NOT NULL, slices JSON, user_id VARCHAR(32) DEFAULT '' NOT NULL,
	CONSTRAINT pk_heatmap PRIMARY KEY (id),
	CONSTRAINT fk_heatmap_prediction_id_prediction FOREIGN KEY(prediction_id) REFERENCES prediction (id) ON DELETE CASCADE,
	CONSTRAINT uq_heatmap_prediction_id UNIQUE (prediction_id)
);
INSERT INTO "heatmap" VALUES('66666666666666666666666666666666','heatmaps/7.png','77777777777777777777777777777777','done',1,0,1,NULL,NULL,1.0,NULL,NULL,'2026-11-27 09:00:00.000000','2026-11-27 09:00:00.000000','2026-11-27 09:05:00.000000','2026-11-27 09:00:00.000000','[1]','aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa');
CREATE TABLE login_session (
	id VARCHAR(32) NOT NULL,
	user_id VARCHAR(32) NOT NULL,
	secret_hash VARCHAR(64) NOT NULL,
	created_at DATETIME NOT NULL,
	expires_at DATETIME NOT NULL,
	browser VARCHAR(40) NOT NULL,
	address VARCHAR(45) NOT NULL,
	used_at DATETIME NOT NULL,
	CONSTRAINT pk_login_session PRIMARY KEY (id),
	CONSTRAINT fk_login_session_user_id_user FOREIGN KEY(user_id) REFERENCES user (id) ON DELETE CASCADE,
	CONSTRAINT uq_login_session_secret_hash UNIQUE (secret_hash)
);
INSERT INTO "login_session" VALUES('dddddddddddddddddddddddddddddddd','aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','1111111111111111111111111111111111111111111111111111111111111111','2026-11-27 09:00:00.000000','2026-11-27 09:05:00.000000','Firefox on Linux','192.0.2.1','2026-11-27 09:05:00.000000');
CREATE TABLE model_version (
	id VARCHAR(32) NOT NULL,
	run_id VARCHAR(32),
	card_id VARCHAR(64) NOT NULL,
	architecture VARCHAR(40) NOT NULL,
	reads VARCHAR(16) NOT NULL,
	storage_prefix VARCHAR(200) NOT NULL,
	card JSON NOT NULL,
	blocked_because TEXT,
	created_at DATETIME NOT NULL, comparisons JSON,
	CONSTRAINT pk_model_version PRIMARY KEY (id),
	CONSTRAINT fk_model_version_run_id_training_run FOREIGN KEY(run_id) REFERENCES training_run (id),
	CONSTRAINT uq_model_version_run_id UNIQUE (run_id)
);
INSERT INTO "model_version" VALUES('33333333333333333333333333333333','22222222222222222222222222222222','4444444444444444444444444444444444444444444444444444444444444444','features','slice','models/3','{"format": 1}',NULL,'2026-11-27 09:05:00.000000','[]');
CREATE TABLE password_reset (
	id VARCHAR(32) NOT NULL,
	user_id VARCHAR(32) NOT NULL,
	made_by_id VARCHAR(32),
	secret_hash VARCHAR(64) NOT NULL,
	created_at DATETIME NOT NULL,
	expires_at DATETIME NOT NULL,
	CONSTRAINT pk_password_reset PRIMARY KEY (id),
	CONSTRAINT fk_password_reset_made_by_id_user FOREIGN KEY(made_by_id) REFERENCES user (id) ON DELETE SET NULL,
	CONSTRAINT fk_password_reset_user_id_user FOREIGN KEY(user_id) REFERENCES user (id) ON DELETE CASCADE,
	CONSTRAINT uq_password_reset_secret_hash UNIQUE (secret_hash)
);
INSERT INTO "password_reset" VALUES('eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','2222222222222222222222222222222222222222222222222222222222222222','2026-11-27 09:00:00.000000','2026-11-27 09:05:00.000000');
CREATE TABLE prediction (
	id VARCHAR(32) NOT NULL,
	scan_id VARCHAR(32) NOT NULL,
	model_version_id VARCHAR(32) NOT NULL,
	probability DOUBLE NOT NULL,
	threshold DOUBLE NOT NULL,
	positive BOOLEAN NOT NULL,
	uncertain BOOLEAN NOT NULL,
	warnings JSON NOT NULL,
	slices JSON NOT NULL,
	seconds DOUBLE NOT NULL,
	created_at DATETIME NOT NULL, first_slices JSON, types JSON,
	CONSTRAINT pk_prediction PRIMARY KEY (id),
	CONSTRAINT fk_prediction_model_version_id_model_version FOREIGN KEY(model_version_id) REFERENCES model_version (id),
	CONSTRAINT fk_prediction_scan_id_scan FOREIGN KEY(scan_id) REFERENCES scan (id) ON DELETE CASCADE,
	CONSTRAINT uq_prediction_scan_id UNIQUE (scan_id)
);
INSERT INTO "prediction" VALUES('66666666666666666666666666666666','44444444444444444444444444444444','33333333333333333333333333333333',0.8,0.5,1,0,'[]','[0.1, 0.8, 0.2]',0.1,'2026-11-27 09:05:00.000000','[1]','{"subdural": {"probability": 0.7, "slices": [0.1, 0.7, 0.1]}}');
CREATE TABLE promotion (
	id INTEGER NOT NULL,
	version_id VARCHAR(32) NOT NULL,
	reads VARCHAR(16) NOT NULL,
	by_id VARCHAR(32),
	at DATETIME NOT NULL,
	reason TEXT NOT NULL,
	CONSTRAINT pk_promotion PRIMARY KEY (id),
	CONSTRAINT fk_promotion_by_id_user FOREIGN KEY(by_id) REFERENCES user (id) ON DELETE SET NULL,
	CONSTRAINT fk_promotion_version_id_model_version FOREIGN KEY(version_id) REFERENCES model_version (id)
);
INSERT INTO "promotion" VALUES(1,'33333333333333333333333333333333','slice','aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','2026-11-27 09:05:00.000000','The first one.');
CREATE TABLE scan (
	user_id VARCHAR(32) NOT NULL,
	title VARCHAR(80) NOT NULL,
	kind VARCHAR(16) NOT NULL,
	original_key VARCHAR(200) NOT NULL,
	image_key VARCHAR(200),
	thumbnail_key VARCHAR(200),
	id VARCHAR(32) NOT NULL,
	status VARCHAR(16) NOT NULL,
	attempts INTEGER NOT NULL,
	counted_deaths INTEGER NOT NULL,
	death_counts BOOLEAN NOT NULL,
	lease_owner VARCHAR(100),
	lease_expires_at DATETIME,
	progress DOUBLE NOT NULL,
	stage VARCHAR(200),
	error TEXT,
	created_at DATETIME NOT NULL,
	started_at DATETIME,
	finished_at DATETIME, not_head_ct DOUBLE, forced_at DATETIME, queued_at DATETIME DEFAULT '1970-01-01 00:00:00.000000' NOT NULL, stat BOOLEAN DEFAULT 0 NOT NULL, slice_count INTEGER DEFAULT '1' NOT NULL, size BIGINT DEFAULT '0' NOT NULL, notes JSON, volume_key VARCHAR(200), original_removed_at DATETIME, risk DOUBLE DEFAULT '0' NOT NULL, margin DOUBLE DEFAULT '1' NOT NULL,
	CONSTRAINT pk_scan PRIMARY KEY (id),
	CONSTRAINT fk_scan_user_id_user FOREIGN KEY(user_id) REFERENCES user (id) ON DELETE CASCADE
);
INSERT INTO "scan" VALUES('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','A series','dicom','originals/4.zip','images/4.png','thumbnails/4.png','44444444444444444444444444444444','done',1,0,1,NULL,NULL,1.0,NULL,NULL,'2026-11-27 09:00:00.000000','2026-11-27 09:00:00.000000','2026-11-27 09:05:00.000000',NULL,NULL,'2026-11-27 09:00:00.000000',1,3,1000,'["One file was left out."]','volumes/4.nii.gz',NULL,0.8,0.3);
INSERT INTO "scan" VALUES('bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','','png','originals/5.png',NULL,NULL,'55555555555555555555555555555555','failed',1,0,1,NULL,NULL,1.0,NULL,'This does not look like a head CT, so it was not scored.','2026-11-27 09:00:00.000000','2026-11-27 09:00:00.000000','2026-11-27 09:05:00.000000',0.9,NULL,'2026-11-27 09:00:00.000000',0,1,0,NULL,NULL,NULL,0.0,1.0);
CREATE TABLE training_run (
	launched_by_id VARCHAR(32),
	architecture VARCHAR(40) NOT NULL,
	settings JSON NOT NULL,
	initial_weights VARCHAR(200) NOT NULL,
	seed INTEGER NOT NULL,
	eta_s DOUBLE,
	current_metrics JSON NOT NULL,
	id VARCHAR(32) NOT NULL,
	status VARCHAR(16) NOT NULL,
	attempts INTEGER NOT NULL,
	counted_deaths INTEGER NOT NULL,
	death_counts BOOLEAN NOT NULL,
	lease_owner VARCHAR(100),
	lease_expires_at DATETIME,
	progress DOUBLE NOT NULL,
	stage VARCHAR(200),
	error TEXT,
	created_at DATETIME NOT NULL,
	started_at DATETIME,
	finished_at DATETIME, queued_at DATETIME DEFAULT '1970-01-01 00:00:00.000000' NOT NULL,
	CONSTRAINT pk_training_run PRIMARY KEY (id),
	CONSTRAINT fk_training_run_launched_by_id_user FOREIGN KEY(launched_by_id) REFERENCES user (id) ON DELETE SET NULL
);
INSERT INTO "training_run" VALUES('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','features','{}','starter',1,NULL,'{"auroc": 0.9}','22222222222222222222222222222222','done',1,0,1,NULL,NULL,1.0,NULL,NULL,'2026-11-27 09:00:00.000000','2026-11-27 09:00:00.000000','2026-11-27 09:05:00.000000','2026-11-27 09:00:00.000000');
CREATE TABLE training_run_dataset (
	training_run_id VARCHAR(32) NOT NULL,
	dataset_id VARCHAR(32) NOT NULL,
	CONSTRAINT pk_training_run_dataset PRIMARY KEY (training_run_id, dataset_id),
	CONSTRAINT fk_training_run_dataset_dataset_id_dataset FOREIGN KEY(dataset_id) REFERENCES dataset (id),
	CONSTRAINT fk_training_run_dataset_training_run_id_training_run FOREIGN KEY(training_run_id) REFERENCES training_run (id) ON DELETE CASCADE
);
INSERT INTO "training_run_dataset" VALUES('22222222222222222222222222222222','11111111111111111111111111111111');
CREATE TABLE user (
	id VARCHAR(32) NOT NULL,
	username VARCHAR(64) NOT NULL,
	username_key VARCHAR(64) NOT NULL,
	name VARCHAR(120) NOT NULL,
	email VARCHAR(254),
	email_key VARCHAR(254),
	phone VARCHAR(40) NOT NULL,
	password_hash VARCHAR(200) NOT NULL,
	role VARCHAR(16) NOT NULL,
	created_at DATETIME NOT NULL, disabled_at DATETIME,
	CONSTRAINT pk_user PRIMARY KEY (id),
	CONSTRAINT uq_user_email_key UNIQUE (email_key),
	CONSTRAINT uq_user_username_key UNIQUE (username_key)
);
INSERT INTO "user" VALUES('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','Ann','ann','Ann Example','Ann@example.org','ann@example.org','','not a hash','admin','2026-11-27 09:00:00.000000',NULL);
INSERT INTO "user" VALUES('bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','Bob','bob','',NULL,NULL,'','not a hash','user','2026-11-27 09:00:00.000000','2026-11-27 09:05:00.000000');
CREATE TABLE worker (
	id VARCHAR(100) NOT NULL,
	queue VARCHAR(20) NOT NULL,
	host VARCHAR(100) NOT NULL,
	pid INTEGER NOT NULL,
	started_at DATETIME NOT NULL,
	seen_at DATETIME NOT NULL,
	delivered_at DATETIME,
	CONSTRAINT pk_worker PRIMARY KEY (id)
);
INSERT INTO "worker" VALUES('predict@example-1','predict','example',1,'2026-11-27 09:00:00.000000','2026-11-27 09:05:00.000000','2026-11-27 09:05:00.000000');
CREATE INDEX ix_worker_seen_at ON worker (seen_at);
CREATE INDEX ix_api_token_user_id ON api_token (user_id);
CREATE INDEX ix_password_reset_user_id ON password_reset (user_id);
CREATE INDEX ix_scan_user_id ON scan (user_id, created_at);
CREATE INDEX ix_model_version_card_id ON model_version (card_id);
CREATE INDEX ix_promotion_reads ON promotion (reads, id);
CREATE INDEX ix_scan_status ON scan (status, queued_at);
CREATE INDEX ix_heatmap_status ON heatmap (status, queued_at);
CREATE INDEX ix_dataset_status ON dataset (status, queued_at);
CREATE INDEX ix_training_run_status ON training_run (status, queued_at);
CREATE INDEX ix_scan_queue ON scan (user_id, stat DESC, queued_at, id) WHERE status = 'queued';
CREATE INDEX ix_login_session_user_id ON login_session (user_id);
CREATE INDEX ix_audit_event_act ON audit_event (act, id);
CREATE INDEX ix_audit_event_actor_id ON audit_event (actor_id, id);
CREATE INDEX ix_audit_event_object_id ON audit_event (object_id, id);
CREATE INDEX ix_audit_event_address ON audit_event (address, id);
CREATE TRIGGER audit_event_refuses_update BEFORE UPDATE ON audit_event BEGIN SELECT RAISE(ABORT, 'The audit log is append-only.'); END;
CREATE TRIGGER audit_event_refuses_delete BEFORE DELETE ON audit_event BEGIN SELECT RAISE(ABORT, 'The audit log is append-only.'); END;
CREATE INDEX ix_scan_risk ON scan (user_id, stat DESC, risk DESC, created_at DESC, id);
CREATE INDEX ix_scan_margin ON scan (user_id, stat DESC, margin, created_at DESC, id);
CREATE INDEX ix_heatmap_queue ON heatmap (user_id, queued_at, id) WHERE status = 'queued';
CREATE INDEX ix_attempt_scan_id ON attempt (scan_id);
CREATE INDEX ix_attempt_run_id ON attempt (run_id);
COMMIT;
