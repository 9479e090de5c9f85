// What a Go program does that sends CreateTask by hand: net/http, the SDK's own v4 signer, one attempt each.
//
// The service's own module is not always to be had; the SDK's core is. Without the SDK's middleware this peer is
// faster than a client made from the service's module would be.
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

type reboot struct{}

type command struct {
	Reboot reboot `json:"reboot"`
}

type createTask struct {
	ClientToken string   `json:"clientToken"`
	Command     command  `json:"command"`
	Targets     []string `json:"targets"`
}

type created struct {
	TaskArn string `json:"taskArn"`
	TaskID  string `json:"taskId"`
}

type sender struct {
	client      *http.Client
	signer      *v4.Signer
	credentials aws.Credentials
	url         string
}

func (s *sender) send(targets []string, token string) error {
	body, err := json.Marshal(createTask{ClientToken: token, Targets: targets})
	if err != nil {
		return err
	}
	request, err := http.NewRequest(http.MethodPost, s.url+"/task", bytes.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	sum := sha256.Sum256(body)
	err = s.signer.SignHTTP(
		context.Background(), s.credentials, request, hex.EncodeToString(sum[:]),
		"snow-device-management", "us-west-2", time.Now(),
	)
	if err != nil {
		return err
	}
	response, err := s.client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	var task created
	if err := json.Unmarshal(text, &task); err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK || task.TaskID == "" {
		return fmt.Errorf("answered %s: %s", response.Status, text)
	}
	return nil
}

func cpu() float64 {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano()).Seconds()
}

func main() {
	url, path := os.Args[1], os.Args[2]
	workers, err := strconv.Atoi(os.Args[3])
	if err != nil {
		panic(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		panic(err)
	}
	ids := strings.Fields(string(data))
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConns, transport.MaxIdleConnsPerHost = workers, workers
	sender := &sender{
		client:      &http.Client{Transport: transport},
		signer:      v4.NewSigner(),
		credentials: aws.Credentials{AccessKeyID: "bench", SecretAccessKey: "bench"},
		url:         strings.TrimSuffix(url, "/"),
	}
	latencies := make([]float64, (len(ids)+9)/10)
	var next atomic.Int64
	var group sync.WaitGroup
	cpuBegan, began := cpu(), time.Now()
	for worker := 0; worker < workers; worker++ {
		group.Add(1)
		go func() {
			defer group.Done()
			for {
				first := int(next.Add(10)) - 10
				if first >= len(ids) {
					return
				}
				sent := time.Now()
				if err := sender.send(ids[first:min(first+10, len(ids))], fmt.Sprintf("%064d", first)); err != nil {
					panic(err)
				}
				latencies[first/10] = float64(time.Since(sent).Microseconds()) / 1e3
			}
		}()
	}
	group.Wait()
	out, _ := json.Marshal(map[string]any{
		"cpu_s": cpu() - cpuBegan, "wall_s": time.Since(began).Seconds(), "latencies_ms": latencies,
	})
	fmt.Println(string(out))
}
